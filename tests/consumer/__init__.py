"""Programs of somebody who uses the API, for mypy alone: nobody runs them."""
