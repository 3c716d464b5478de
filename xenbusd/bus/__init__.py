"""The bus: finds device pairs in the store, walks them through their states, and supervises their drivers."""
