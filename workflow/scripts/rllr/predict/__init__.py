"""Answers of trained models, and the files and folders by which they are used."""
