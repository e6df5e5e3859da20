"""What people see: notebooks, widgets, playground, report, terminal answers."""
