"""The page: two models side by side, picture by picture, and what happens inside them."""
