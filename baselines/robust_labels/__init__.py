"""Labels of robust teachers for the images of any method."""
