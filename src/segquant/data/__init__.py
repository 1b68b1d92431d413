"""Where labelled images come from, how they are kept, and how they become a model's input."""
