"""Our own ablation: whose uniforms × aggregator × initial θ.

python launch/table_uniforms.py --seeds=3 --out=runs/table_uniforms  # options: runner.py

One u for the whole cohort (the paper) or one per client; Beta posterior (the paper) or control variate.
DINOv2 ViT-S/14 at 84 pixels, CIFAR-10; --smoke on the embedded network.
"""

import runner


def runs(smoke: bool) -> list[runner.Run]:
    return [
        runner.Run(
            f"{uniforms}/{aggregator}/theta{theta}",
            "configs/dinov2_small.py:dataset=tfds:cifar10",
            {"mask.uniforms": uniforms, "mask.aggregator": aggregator, "mask.theta_init": theta},
        )
        for uniforms in ("shared", "per_client")
        for aggregator in ("beta", "control_variate")
        for theta in ((0.5, 0.85, 0.97) if not smoke else (0.5, 0.97))
    ]


if __name__ == "__main__":
    runner.main(__doc__, runs)
