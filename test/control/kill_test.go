package control

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/remote"
	"k8s.io/apimachinery/pkg/api/meta"

	"github.com/apparate/apparate/api/v1alpha1"
	"github.com/apparate/apparate/controllers/conversion"
)

// TestKill kills the operator with SIGKILL at every request of a conversion, to the
// registry and to the API server, one after the other, and starts it anew each
// time. There has to be one accelerated image, the right one, and nothing that
// still says it is at work.
func TestKill(t *testing.T) {
	f := &fuse{}
	w := newWorld(t, options{stopped: true, kubeconfig: f.apiProxy(t), args: []string{"--history-count", "0"}})
	f.kill = func() { _ = w.op.Process.Signal(syscall.SIGKILL) } // it runs: it sent the request
	var repo string
	registry := f.proxy(t, "http://"+w.registry.Addr, http.DefaultTransport, "registry", func(r *http.Request) bool {
		return strings.HasPrefix(r.URL.Path, "/v2/library/"+repo)
	})
	w.apply(strings.ReplaceAll(w.sample("registry.yaml"), w.registry.Addr, strings.TrimPrefix(registry.URL, "http://")))
	w.apply(strings.Replace(w.sample("accelerationrule.yaml"), "nginx.*", "app-.*", 1))
	w.start()
	w.ready()
	w.eventually("the rule is ready", func() error { return w.rule("nginx", "True", "Ready") })
	stages := 0
	for n := 1; ; n++ {
		repo = fmt.Sprintf("app-%d", n)
		name := "library/" + repo
		f.arm(n)
		w.push(name+":latest", image(t, repo))
		var killed string
		w.eventuallyAlive(fmt.Sprintf("step %d kills, or all is over", n), func() error {
			if _, killed = f.state(); killed != "" {
				return nil
			}
			return w.settled(repo)
		})
		if killed != "" {
			f.arm(0)
			w.stop(syscall.SIGKILL)
			w.start()
			stages++
		}
		w.accelerated(name + ":latest")
		w.eventually("nothing is at work any more, after a kill "+killed, func() error { return w.settled(repo) })
		tags, err := remote.List(w.ref(name).Context())
		slices.Sort(tags)
		if err != nil || !slices.Equal(tags, []string{"latest", "latest-apparate"}) {
			t.Errorf("killed %s: the tags are %v, %v", killed, tags, err)
		}
		if t.Failed() || killed == "" {
			break
		}
	}
	t.Logf("killed at %d steps", stages)
	if stages < 30 {
		t.Errorf("there were only %d steps", stages)
	}
}

// settled says whether all conversions of a repository have ended, one of them
// with an image.
func (w *world) settled(repo string) error {
	succeeded := 0
	for _, c := range w.conversions() {
		if c.Spec.Repository != "library/"+repo {
			continue
		}
		s := meta.FindStatusCondition(c.Status.Conditions, v1alpha1.ConditionSucceeded)
		switch {
		case !conversion.Finished(&c):
			return fmt.Errorf("%s has not ended: %+v", c.Name, s)
		case meta.FindStatusCondition(c.Status.Conditions, v1alpha1.ConditionReconciling) != nil:
			return fmt.Errorf("%s has ended and reconciles", c.Name)
		case conversion.Succeeded(&c):
			succeeded++
		}
	}
	if succeeded != 1 {
		return fmt.Errorf("%d conversions have succeeded", succeeded)
	}
	return nil
}
