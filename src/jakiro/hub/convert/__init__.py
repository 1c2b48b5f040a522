"""Draft heads of others: one file per published layout, and the ways in and out."""
