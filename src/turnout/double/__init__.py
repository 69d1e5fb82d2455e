"""Several tasks on one backbone: y = head(router(backbone(x)))."""
