"""What evaluations leave behind: episode rows, their folders, comparisons of arms."""
