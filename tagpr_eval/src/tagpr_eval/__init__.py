"""The LaMP harness: lighteval tasks and models, ablation grids, statistics, reports."""
