"""The Rockchip NPU, through rknn-toolkit-lite2."""
