"""What every part of an audit uses: settings, inputs, workspace, manifest."""
