package main

import (
	"testing"

	"github.com/apparate/apparate/controllers/pullsecret"
	"github.com/apparate/apparate/snapshotter/agent"
)

// TestPullSecretNames: what the operator marks is what an uninstallation looks for.
func TestPullSecretNames(t *testing.T) {
	for _, c := range []struct{ what, operator, node string }{
		{"label", pullsecret.Label, agent.PullSecretLabel}, {"origin", pullsecret.Origin, agent.PullSecretOrigin},
		{"attached", pullsecret.Attached, agent.PullSecretAttached},
	} {
		if c.operator != c.node {
			t.Errorf("%s: the operator writes %s, the node looks for %s", c.what, c.operator, c.node)
		}
	}
}
