"""The round: who trains, what travels, who fails or lies. It does not know what is trained."""
