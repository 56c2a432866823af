"""SFT, the personalization reward model with user embeddings (PRMU), and two-stage RL."""
