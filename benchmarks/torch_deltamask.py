"""A DeltaMask client as an honest PyTorch program: what vs_torch.py and vs_flower.py measure against.

Written the way federated research code does it: one client after the other, `torch.bernoulli` masks with a
straight-through gradient, `torch.optim.Adam` on the logits. Shapes are those of this package's ViTs, weights
random. Needs only torch and NumPy, so that it also runs where jax does not.
"""

import dataclasses

import torch
from torch import nn
from torch.nn import functional as F


@dataclasses.dataclass(frozen=True)
class Shape:
    """A vision transformer; patch and image in pixels, the last `trained` blocks masked."""

    width: int
    depth: int
    heads: int
    patch: int
    image: int
    trained: int = 5
    classes: int = 10

    @property
    def tokens(self) -> int:
        return 1 + (self.image // self.patch) ** 2


SHAPES = {
    "vit_s14": Shape(384, 12, 6, 14, 84),
    "vit_b16": Shape(768, 12, 12, 16, 224),
    "glyph": Shape(128, 8, 4, 4, 32),
    "tiny": Shape(32, 6, 2, 8, 32),
}


class Masked(nn.Module):
    """A frozen linear layer with a trained logit a weight; masks are drawn at every forward pass."""

    def __init__(self, inputs: int, outputs: int, theta: float):
        super().__init__()
        weight = torch.randn(outputs, inputs) * inputs**-0.5
        self.register_buffer("weight", weight)
        self.register_buffer("bias", torch.zeros(outputs))
        self.logits = nn.Parameter(torch.full_like(weight, torch.logit(torch.tensor(theta)).item()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        theta = torch.sigmoid(self.logits)
        mask = torch.bernoulli(theta).detach() + theta - theta.detach()  # straight through
        return F.linear(x, mask * self.weight, self.bias)


class Block(nn.Module):
    def __init__(self, shape: Shape, linear):
        super().__init__()
        c = shape.width
        self.heads = shape.heads
        self.norms = nn.ModuleList([nn.LayerNorm(c), nn.LayerNorm(c)])
        self.query, self.key, self.value, self.out = (linear(c, c) for _ in range(4))
        self.up, self.down = linear(c, 4 * c), linear(4 * c, c)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, t, c = x.shape
        h = self.norms[0](x)
        split = [
            layer(h).view(n, t, self.heads, -1).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        ]
        mixed = F.scaled_dot_product_attention(*split).transpose(1, 2).reshape(n, t, c)
        x = x + self.out(mixed)
        return x + self.down(F.gelu(self.up(self.norms[1](x))))


class Network(nn.Module):
    """`prefix`: pixels to tokens, frozen. `forward`: tokens to class logits through the masked blocks."""

    def __init__(self, shape: Shape, theta: float = 0.97):
        super().__init__()
        self.embed = nn.Conv2d(3, shape.width, shape.patch, shape.patch)
        self.cls = nn.Parameter(torch.zeros(1, 1, shape.width))
        self.positions = nn.Parameter(torch.randn(1, shape.tokens, shape.width) * 0.02)
        frozen = shape.depth - shape.trained
        self.frozen = nn.Sequential(*(Block(shape, nn.Linear) for _ in range(frozen)))
        self.masked = nn.Sequential(
            *(Block(shape, lambda i, o: Masked(i, o, theta)) for _ in range(shape.trained))
        )
        self.norm, self.head = nn.LayerNorm(shape.width), nn.Linear(shape.width, shape.classes)
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name.endswith("logits"))

    @torch.no_grad()
    def prefix(self, images: torch.Tensor) -> torch.Tensor:
        x = self.embed(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], 1) + self.positions
        return self.frozen(x)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.masked(tokens))[:, 0])

    def logits(self) -> list[nn.Parameter]:
        return [parameter for name, parameter in self.named_parameters() if name.endswith("logits")]


def start(network: Network, theta: torch.Tensor) -> None:
    """A client begins from the server's θ, f32[d]."""
    pieces = torch.logit(theta.clamp(0.01, 0.99)).split([p.numel() for p in network.logits()])
    with torch.no_grad():
        for parameter, piece in zip(network.logits(), pieces, strict=True):
            parameter.copy_(piece.view_as(parameter))


def train(
    network: Network, inputs: torch.Tensor, labels: torch.Tensor, batch: int, *, prefix: bool, bf16: bool
):
    """One local epoch; θ_k f32[d]. With `prefix` the inputs are images, else cached tokens."""
    optimizer = torch.optim.Adam(network.logits(), lr=0.1)
    for rows in torch.randperm(len(inputs), device=inputs.device).split(batch):
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=bf16):
            tokens = network.prefix(inputs[rows]) if prefix else inputs[rows]
            loss = F.cross_entropy(network(tokens).float(), labels[rows])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return torch.cat([torch.sigmoid(p.detach()).flatten() for p in network.logits()])


def flips(theta_k: torch.Tensor, theta_g: torch.Tensor, uniforms: torch.Tensor, kappa: float) -> torch.Tensor:
    """Positions whose mask bit flipped, the top κ of them by KL(θ_k ‖ θ_g)."""
    changed = torch.nonzero((uniforms < theta_k) != (uniforms < theta_g)).squeeze(1)
    p, q = (theta[changed].clamp(1e-6, 1 - 1e-6) for theta in (theta_k, theta_g))
    divergence = p * torch.log(p / q) + (1 - p) * torch.log((1 - p) / (1 - q))
    return changed[torch.topk(divergence, int(kappa * len(changed))).indices].sort().values
