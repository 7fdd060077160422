package node

import (
	"context"
	"fmt"

	"github.com/apparate/apparate/test/images"
)

// RunReady starts a container named id from the pulled image ref and returns once
// it has given the answer of spec, asked for from outside. env is added to its
// environment. Where that fails the container goes on, and Close ends it.
func (n *Node) RunReady(ctx context.Context, ref, snapshotter, id string, spec images.Spec, env ...string) (*Container, error) {
	port, err := FreePort()
	if err != nil {
		return nil, err
	}
	c, err := n.Run(ctx, ref, snapshotter, id, append([]string{fmt.Sprintf("%s=%d", images.PortVariable, port)}, env...))
	if err != nil {
		return nil, err
	}
	return c, c.waitReady(ctx, spec, port)
}

func (c *Container) waitReady(ctx context.Context, spec images.Spec, port int) error {
	if spec.Line != "" {
		return c.WaitLine(ctx, spec.Line)
	}
	return c.WaitPage(ctx, fmt.Sprintf("http://127.0.0.1:%d%s", port, spec.Path), spec.Body)
}
