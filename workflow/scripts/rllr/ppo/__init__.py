"""The PPO engine: backbone (adapters and heads), rollout, scoring, advantages, losses, loop."""
