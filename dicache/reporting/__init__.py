"""What a run is shown as: table, page, plot."""
