package cluster

import "testing"

func TestUp(t *testing.T) {
	c := Start(t, Options{})
	out, bad, err := c.Kubectl(t.Context(), "", "get", "nodes", "-o", "wide")
	t.Log(out, bad, err)
}
