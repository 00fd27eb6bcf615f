"""Watch a vision model learn where to look: Expected Grad-CAM as a Lightning callback."""
