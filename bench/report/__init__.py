"""Result lines, and the page and pictures made of them."""
