package control

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/apparate/apparate/api/v1alpha1"
	"github.com/apparate/apparate/controllers/conversion"
	"github.com/apparate/apparate/controllers/status"
	"github.com/apparate/apparate/test/node"
	"github.com/apparate/apparate/test/tools"
)

// TestSupersede pushes a tag again and again while it is converted: the last push
// is what the accelerated image is of, and every conversion comes to an end.
func TestSupersede(t *testing.T) {
	w := newWorld(t, options{args: []string{"--workers", "2"}})
	w.apply(w.sample("registry.yaml"))
	w.apply(w.sample("accelerationrule.yaml"))
	w.eventually("the rule is ready", func() error { return w.rule("nginx", "True", "Ready") })
	for i := range 8 {
		w.push("library/nginx:latest", image(t, fmt.Sprintf("push %d", i)))
		if i == 3 {
			time.Sleep(100 * time.Millisecond) // some get further than others
		}
	}
	w.accelerated("library/nginx:latest")
	w.eventually("every conversion has ended", func() error {
		for _, c := range w.conversions() {
			s := meta.FindStatusCondition(c.Status.Conditions, v1alpha1.ConditionSucceeded)
			if !conversion.Finished(&c) {
				return fmt.Errorf("%s has not ended: %+v", c.Name, s)
			}
			if !conversion.Succeeded(&c) && s.Reason != v1alpha1.ReasonSuperseded {
				return fmt.Errorf("%s ended as %+v", c.Name, s)
			}
		}
		return nil
	})
	w.accelerated("library/nginx:latest")

	// Back to an image that was converted before.
	first := image(t, "push 0")
	w.push("library/nginx:latest", first)
	w.accelerated("library/nginx:latest")
}

// TestRetry takes the registry away while images are to be converted.
func TestRetry(t *testing.T) {
	w := newWorld(t, options{stopped: true, registryArgs: []string{"--user", "robot:change-me"}})
	w.apply(w.sample("registry.yaml"))
	w.apply(w.sample("accelerationrule.yaml"))
	w.apply(w.sample("imageconversion.yaml"))
	w.user = "robot:change-me"
	w.push("library/nginx:1.27", image(t, "later"))
	if err := w.registry.Close(); err != nil {
		t.Fatal(err)
	}
	w.start()
	w.ready()
	reason := func(want string, attempts int32) {
		t.Helper()
		w.eventually("the conversion is "+want, func() error {
			var c v1alpha1.ImageConversion
			if err := w.client.Get(t.Context(), client.ObjectKey{Namespace: w.namespace, Name: "nginx-by-hand"}, &c); err != nil {
				return err
			}
			s := meta.FindStatusCondition(c.Status.Conditions, v1alpha1.ConditionSucceeded)
			if s == nil || s.Reason != want || c.Status.Attempts < attempts {
				return fmt.Errorf("%+v", c.Status)
			}
			return nil
		})
	}
	reason(v1alpha1.ReasonRetrying, 3)
	start := func(user string) {
		t.Helper()
		r, err := node.StartRegistry(t.Context(), commands[tools.Registry], w.registry.Dir, "--address", w.registry.Addr, "--user", user)
		if err != nil {
			t.Fatal(err)
		}
		w.registry = r
	}
	// It comes back, and does not take our password any more: nothing to retry.
	start("robot:another")
	reason("PullDenied", 1)
	w.apply(strings.NewReplacer("HOST", w.registry.Addr, "change-me", "another").Replace(credentials))
	reason(v1alpha1.ReasonConverted, 1)
}

// TestReplicas has two operators of which one works; the other takes notifications,
// and goes on when the first is gone.
func TestReplicas(t *testing.T) {
	w := newWorld(t, options{stopped: true, lost: true})
	for i, a := range w.args {
		if a == "--leader-elect=false" {
			w.args[i] = "--leader-namespace=apparate-system"
		}
	}
	w.apply(w.sample("registry.yaml"))
	w.apply(w.sample("accelerationrule.yaml"))
	w.start()
	w.ready()
	w.eventually("the rule is ready", func() error { return w.rule("nginx", "True", "Ready") })
	second := &world{
		t: t, limit: w.limit, cluster: w.cluster, namespace: w.namespace, client: w.client, registry: w.registry, token: w.token,
		webhook: freeAddress(t), metrics: freeAddress(t), probe: freeAddress(t), log: &syncBuffer{},
	}
	second.args = append([]string{}, w.args...)
	second.args = append(second.args, "--notification-address", second.webhook, "--metrics-address", second.metrics, "--probe-address", second.probe)
	second.start()
	t.Cleanup(func() { second.stop(syscall.SIGTERM) })
	second.ready()
	w.push("library/nginx:1", image(t, "replicas"))
	second.notify("library/nginx", "1")
	w.accelerated("library/nginx:1")
	if !strings.Contains(w.metric("apparate_conversions_total"), "Converted") || strings.Contains(second.metric("apparate_conversions_total"), "Converted") {
		t.Error("the wrong one of them has converted")
	}
	w.stop(syscall.SIGKILL)
	w.ended = second.ended
	w.push("library/nginx:2", image(t, "one is left"))
	second.notify("library/nginx", "2")
	w.accelerated("library/nginx:2")
}

// TestConflict proves that a status is only written over the version it was made
// from, and never into another object of the same name.
func TestConflict(t *testing.T) {
	w := newWorld(t, options{stopped: true})
	apply := func() *v1alpha1.AccelerationRule {
		t.Helper()
		w.apply(w.sample("accelerationrule.yaml"))
		var r v1alpha1.AccelerationRule
		if err := w.client.Get(t.Context(), client.ObjectKey{Namespace: w.namespace, Name: "nginx"}, &r); err != nil {
			t.Fatal(err)
		}
		return &r
	}
	before := apply()
	set := func(r *v1alpha1.AccelerationRule, reason string) *v1alpha1.AccelerationRule {
		now := r.DeepCopy()
		status.Conditions{List: &now.Status.Conditions, Generation: r.Generation}.True(v1alpha1.ConditionReady, reason, strings.Repeat("ä", 5000))
		return now
	}
	one := set(before, "One")
	if written, err := status.Write(t.Context(), w.client, before, one); err != nil || !written {
		t.Fatal(written, err)
	}
	if written, err := status.Write(t.Context(), w.client, before, set(before, "Two")); !apierrors.IsConflict(err) || written {
		t.Errorf("over a newer version: %v, %v", written, err)
	}
	fresh := apply()
	if c := fresh.Status.Conditions; len(c) != 1 || c[0].Reason != "One" || len([]rune(c[0].Message)) != status.MaxMessage {
		t.Errorf("%+v", c)
	}
	if written, err := status.Write(t.Context(), w.client, fresh, fresh.DeepCopy()); err != nil || written {
		t.Errorf("without a change: %v, %v", written, err)
	}
	empty := fresh.DeepCopy()
	empty.Status.Conditions = nil
	if _, err := status.Write(t.Context(), w.client, fresh, empty); err != nil {
		t.Fatal(err)
	}
	if after := apply(); len(after.Status.Conditions) != 0 {
		t.Errorf("what is not said any more stays: %+v", after.Status)
	}
	old := apply()
	if out, err := w.kubectl("", "delete", "accelrule", "nginx"); err != nil {
		t.Fatal(err, out)
	}
	if written, err := status.Write(t.Context(), w.client, old, set(old, "Three")); err == nil || written {
		t.Error("a status is written for an object that is gone")
	}
	apply()
	if written, err := status.Write(t.Context(), w.client, old, set(old, "Four")); !apierrors.IsConflict(err) || written {
		t.Errorf("into another object of the name: %v, %v", written, err)
	}
}

// TestSamples applies the samples as they are.
func TestSamples(t *testing.T) {
	w := newWorld(t, options{stopped: true})
	for _, f := range []string{"registry.yaml", "accelerationrule.yaml", "imageconversion.yaml"} {
		b, err := os.ReadFile(filepath.Join(root, "config", "samples", f))
		if err != nil {
			t.Fatal(err)
		}
		w.apply(string(b))
	}
	out, err := w.kubectl("", "get", "accelrule", "nginx", "-o", "jsonpath={.spec.description}")
	if err != nil || !strings.Contains(out, "加速分发") {
		t.Errorf("%s, %v", out, err)
	}
}

// TestHistory proves that finished conversions are removed, and images are not.
func TestHistory(t *testing.T) {
	w := newWorld(t, options{args: []string{"--history-age", "1s"}})
	w.apply(w.sample("registry.yaml"))
	w.apply(w.sample("accelerationrule.yaml"))
	w.eventually("the rule is ready", func() error { return w.rule("nginx", "True", "Ready") })
	w.push("library/nginx:1", image(t, "history"))
	w.accelerated("library/nginx:1")
	w.eventually("it has ended", func() error {
		if all := w.conversions(); len(all) == 1 && conversion.Finished(&all[0]) {
			return nil
		}
		return fmt.Errorf("%+v", w.conversions())
	})
	w.stop(syscall.SIGTERM)
	time.Sleep(2 * time.Second) // it is old now
	w.start()                   // and is removed at once
	w.ready()
	w.eventually("nothing is left of it", func() error {
		if n := len(w.conversions()); n > 0 {
			return fmt.Errorf("there are %d", n)
		}
		return nil
	})
	w.accelerated("library/nginx:1")
	// The scan of the new operator sees that there is nothing to do.
	w.eventually("the tag is counted as converted", func() error {
		var r v1alpha1.AccelerationRule
		if err := w.client.Get(t.Context(), client.ObjectKey{Namespace: w.namespace, Name: "nginx"}, &r); err != nil {
			return err
		}
		if r.Status.Converted != 1 || len(w.conversions()) > 0 {
			return fmt.Errorf("%+v, %d conversions", r.Status, len(w.conversions()))
		}
		return nil
	})
}
