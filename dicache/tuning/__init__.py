"""What two dozen prompts buy: a schedule that was raced for, fitted and judged on them; for loops of one's own too."""
