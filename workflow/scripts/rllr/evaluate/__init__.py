"""What the answers are worth: metrics, comparisons, reward quality, tables, figures, pages."""
