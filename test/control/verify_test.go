package control

import (
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// TestVerify asks for the rules of a cluster, before and after an image is there.
func TestVerify(t *testing.T) {
	w := newWorld(t, options{})
	verify := func(image string, more ...string) (string, bool) {
		args := append([]string{"verify", w.registry.Addr + "/" + image, "--kubeconfig", cluster.Kubeconfig, "-n", w.namespace}, more...)
		out, err := exec.Command(commands["apparate"], args...).CombinedOutput()
		return string(out), err == nil
	}
	expect := func(image string, ok bool, says string, more ...string) {
		t.Helper()
		if out, got := verify(image, more...); got != ok || !strings.Contains(out, says) {
			t.Errorf("verify %s %v: %v, %s", image, more, got, out)
		}
	}
	expect("nginx:latest", false, "there is no Registry")
	w.apply(w.sample("registry.yaml"))
	expect("nginx:latest", false, "there are no rules")
	w.apply(w.sample("accelerationrule.yaml"))
	expect("nginx:latest", true, `rule "nginx" matches nginx:latest`)
	expect("redis:7", false, "NoRuleMatches")
	w.eventually("the rule is ready", func() error { return w.rule("nginx", "True", "Ready") })
	w.push("nginx:latest", image(t, "verify"))
	w.accelerated("nginx:latest")
	expect("nginx:latest", true, "ImageConversion nginx-latest-")
	expect("nginx:latest", false, "AlreadyAccelerated", "--inspect")
	expect("nginx:latest-apparate", false, "IsAcceleratedImage", "--inspect")
	chart := mutate.ConfigMediaType(image(t, "chart"), "application/vnd.cncf.helm.config.v1+json")
	if err := remote.Write(w.ref("nginx:1.0"), chart); err != nil {
		t.Fatal(err)
	}
	expect("nginx:1.0", true, `rule "nginx" matches`)
	expect("nginx:1.0", false, "NotAnImage", "--inspect")
	if n := len(w.conversions()); n != 1 {
		t.Errorf("there are %d conversions: the chart is no image", n)
	}
}
