"""What attention is known by: each recipe is one script on `regard.nn`, trained on real data, honest about its score."""
