"""What to try: grids and search spaces over settings, and the samplers that draw from them. No torch here."""
