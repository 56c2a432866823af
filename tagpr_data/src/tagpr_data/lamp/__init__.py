"""The LaMP benchmark as published: its files, prompts and metrics, byte for byte."""
