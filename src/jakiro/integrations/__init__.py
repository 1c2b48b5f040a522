"""What other engines run of this package, a file or directory for each. Nothing else in the package
imports this room, and it imports those engines only where they call it."""
