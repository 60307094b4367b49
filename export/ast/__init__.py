"""The AST's graph and front end."""
