package control

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/remote"
	corev1 "k8s.io/api/core/v1"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/cli-utils/pkg/kstatus/status"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/apparate/apparate/api/v1alpha1"
)

// known are the conditions that each kind may have.
var known = map[string][]string{
	v1alpha1.KindRegistry:         {v1alpha1.ConditionReady, v1alpha1.ConditionReachable, v1alpha1.ConditionWebhookReady},
	v1alpha1.KindAccelerationRule: {v1alpha1.ConditionReady, v1alpha1.ConditionSourceReachable, v1alpha1.ConditionConversionsHealthy},
	v1alpha1.KindImageConversion:  {v1alpha1.ConditionSucceeded},
}

// kstatus waits until an object has a status of kstatus and a reason in its main
// condition, and holds its conditions against the conventions.
func (w *world) kstatus(kind, name string, want status.Status, reason string) {
	w.t.Helper()
	w.eventually(fmt.Sprintf("%s %s is %s (%s)", kind, name, want, reason), func() error {
		u := &unstructured.Unstructured{}
		u.SetGroupVersionKind(v1alpha1.GroupVersion.WithKind(kind))
		if err := w.client.Get(w.t.Context(), client.ObjectKey{Namespace: w.namespace, Name: name}, u); err != nil {
			return err
		}
		r, err := status.Compute(u)
		if err != nil {
			return err
		}
		raw, _, err := unstructured.NestedSlice(u.Object, "status", "conditions")
		if err != nil {
			return err
		}
		conditions := map[string]map[string]any{}
		for _, c := range raw {
			c := c.(map[string]any)
			conditions[c["type"].(string)] = c
			for _, field := range []string{"reason", "lastTransitionTime", "status"} {
				if c[field] == "" || c[field] == nil {
					return fmt.Errorf("condition %s has no %s", c["type"], field)
				}
			}
			if c["observedGeneration"] != u.GetGeneration() {
				return fmt.Errorf("condition %s speaks of generation %v, not %d", c["type"], c["observedGeneration"], u.GetGeneration())
			}
			more := []string{v1alpha1.ConditionReconciling, v1alpha1.ConditionStalled}
			if !slices.Contains(append(more, known[kind]...), c["type"].(string)) {
				return fmt.Errorf("condition %s is not known", c["type"])
			}
			if slices.Contains(more, c["type"].(string)) && c["status"] != "True" {
				return fmt.Errorf("condition %s is there and not True", c["type"])
			}
		}
		for _, k := range known[kind] {
			if conditions[k] == nil {
				return fmt.Errorf("condition %s is missing", k)
			}
		}
		if conditions[v1alpha1.ConditionReconciling] != nil && conditions[v1alpha1.ConditionStalled] != nil {
			return fmt.Errorf("it reconciles and is stalled")
		}
		if got := conditions[known[kind][0]]["reason"]; r.Status != want || got != reason {
			return fmt.Errorf("kstatus is %s (%s), the reason %v: %v", r.Status, r.Message, got, conditions[known[kind][0]]["message"])
		}
		return nil
	})
}

// TestStatus walks through what can be wrong, and holds every status against the
// conventions of Kubernetes and kstatus on the way.
func TestStatus(t *testing.T) {
	w := newWorld(t, options{registryArgs: []string{"--user", "robot:change-me"}})
	w.apply(w.sample("accelerationrule.yaml"))
	w.kstatus(v1alpha1.KindAccelerationRule, "nginx", status.FailedStatus, v1alpha1.ReasonRegistryNotFound)

	// The samples' Secret is for another host.
	w.apply(w.sample("registry.yaml"))
	w.apply(strings.ReplaceAll(credentials, "HOST", "other.example"))
	w.kstatus(v1alpha1.KindRegistry, "main", status.FailedStatus, v1alpha1.ReasonSecretInvalid)
	w.kstatus(v1alpha1.KindAccelerationRule, "nginx", status.InProgressStatus, v1alpha1.ReasonRegistryNotReady)
	// The wrong password.
	w.apply(strings.NewReplacer("HOST", w.registry.Addr, "change-me", "wrong").Replace(credentials))
	w.kstatus(v1alpha1.KindRegistry, "main", status.FailedStatus, "PullDenied")
	// The right one: nobody has to touch the Registry.
	w.apply(strings.ReplaceAll(credentials, "HOST", w.registry.Addr))
	w.kstatus(v1alpha1.KindRegistry, "main", status.CurrentStatus, v1alpha1.ReasonReady)
	w.kstatus(v1alpha1.KindAccelerationRule, "nginx", status.CurrentStatus, v1alpha1.ReasonReady)

	patch := func(object, patch string) {
		t.Helper()
		if out, err := w.kubectl("", "patch", "--type=merge", object, "-p", patch); err != nil {
			t.Fatal(err, out)
		}
	}
	patch("accelrule/nginx", `{"spec":{"suspend":true}}`)
	w.kstatus(v1alpha1.KindAccelerationRule, "nginx", status.FailedStatus, v1alpha1.ReasonSuspended)
	patch("accelrule/nginx", `{"spec":{"suspend":false}}`)
	patch("accelreg/main", `{"spec":{"accelerationEnabled":false}}`)
	w.kstatus(v1alpha1.KindAccelerationRule, "nginx", status.FailedStatus, v1alpha1.ReasonAccelerationDisabled)

	// A conversion by hand is held while acceleration is off, fails for good where
	// there is no image, and goes on when asked to.
	w.apply(w.sample("imageconversion.yaml"))
	w.kstatus(v1alpha1.KindImageConversion, "nginx-by-hand", status.FailedStatus, v1alpha1.ReasonHeld)
	patch("accelreg/main", `{"spec":{"accelerationEnabled":true}}`)
	w.kstatus(v1alpha1.KindImageConversion, "nginx-by-hand", status.FailedStatus, "ImageNotFound")
	patch("imgconv/nginx-by-hand", `{"metadata":{"annotations":{"apparate.cloud.tencent.com/requested-at":"now"}}}`)
	w.kstatus(v1alpha1.KindImageConversion, "nginx-by-hand", status.FailedStatus, "ImageNotFound")
	w.eventually("the request was followed", func() error {
		var c v1alpha1.ImageConversion
		if err := w.client.Get(t.Context(), client.ObjectKey{Namespace: w.namespace, Name: "nginx-by-hand"}, &c); err != nil {
			return err
		}
		if c.Status.LastHandledRequest != "now" || c.Status.Attempts != 1 {
			return fmt.Errorf("%+v", c.Status)
		}
		return nil
	})
	w.verified(t)
	w.transitions(t)
	w.quiet(t)
}

const credentials = `
apiVersion: v1
kind: Secret
metadata: {name: registry-account}
type: kubernetes.io/dockerconfigjson
stringData: {.dockerconfigjson: '{"auths": {"HOST": {"username": "robot", "password": "change-me"}}}'}
`

// verified holds the answers to spec.verify against what they have to be.
func (w *world) verified(t *testing.T) {
	t.Helper()
	w.eventually("the addresses are answered", func() error {
		var r v1alpha1.AccelerationRule
		if err := w.client.Get(t.Context(), client.ObjectKey{Namespace: w.namespace, Name: "nginx"}, &r); err != nil {
			return err
		}
		v := r.Status.Verify
		if len(v) != 2 || !v[0].Matches || v[0].Reason != v1alpha1.ReasonMatched || v[1].Matches || v[1].Reason != v1alpha1.ReasonNoRuleMatches || !strings.Contains(v[1].Message, "repository") {
			return fmt.Errorf("%+v", v)
		}
		return nil
	})
}

// transitions proves that events were recorded of transitions, few of each.
func (w *world) transitions(t *testing.T) {
	t.Helper()
	w.eventually("there are events", func() error {
		var l corev1.EventList
		if err := w.client.List(t.Context(), &l, client.InNamespace(w.namespace)); err != nil {
			return err
		}
		seen := map[string]int32{}
		for _, e := range l.Items {
			seen[e.InvolvedObject.Kind+" "+e.Reason] += max(e.Count, 1)
			if strings.Contains(e.Message, "change-me") || strings.Contains(e.Message, w.token) {
				t.Errorf("an event has a secret: %s", e.Message)
			}
		}
		for _, want := range []string{"Registry SecretInvalid", "Registry PullDenied", "Registry Ready", "AccelerationRule Suspended", "AccelerationRule Ready", "ImageConversion ImageNotFound"} {
			if n := seen[want]; n < 1 || n > 6 {
				return fmt.Errorf("%s was recorded %d times: %v", want, n, seen)
			}
		}
		return nil
	})
}

// quiet proves that an operator with nothing to do writes nothing.
func (w *world) quiet(t *testing.T) {
	t.Helper()
	versions := func() string {
		var all []string
		for _, l := range []client.ObjectList{&v1alpha1.RegistryList{}, &v1alpha1.AccelerationRuleList{}, &v1alpha1.ImageConversionList{}} {
			if err := w.client.List(t.Context(), l, client.InNamespace(w.namespace)); err != nil {
				t.Fatal(err)
			}
			switch l := l.(type) {
			case *v1alpha1.RegistryList:
				for _, o := range l.Items {
					all = append(all, o.ResourceVersion)
				}
			case *v1alpha1.AccelerationRuleList:
				for _, o := range l.Items {
					all = append(all, o.ResourceVersion)
				}
			case *v1alpha1.ImageConversionList:
				for _, o := range l.Items {
					all = append(all, o.ResourceVersion)
				}
			}
		}
		return strings.Join(all, " ")
	}
	w.eventually("nothing is written for three seconds", func() error {
		before := versions()
		time.Sleep(3 * time.Second)
		if after := versions(); after != before {
			return fmt.Errorf("%s became %s", before, after)
		}
		return nil
	})
}

// TestDeletion proves that deleting objects never deletes images, and deleting
// either image leaves the other.
func TestDeletion(t *testing.T) {
	w := newWorld(t, options{})
	w.apply(w.sample("registry.yaml"))
	w.apply(w.sample("accelerationrule.yaml"))
	w.eventually("the rule is ready", func() error { return w.rule("nginx", "True", "Ready") })
	for _, tag := range []string{"1", "2"} {
		w.push("library/nginx:"+tag, image(t, "tag "+tag))
		w.accelerated("library/nginx:" + tag)
	}
	w.eventually("both are counted", func() error {
		var r v1alpha1.AccelerationRule
		if err := w.client.Get(t.Context(), client.ObjectKey{Namespace: w.namespace, Name: "nginx"}, &r); err != nil {
			return err
		}
		if s := r.Status; s.Matched != 2 || s.Converted != 2 || s.Failed != 0 || s.Pending != 0 || s.LastConversion == nil {
			return fmt.Errorf("%+v", s)
		}
		return nil
	})
	if out, err := w.kubectl("", "delete", "imgconv", "--all"); err != nil {
		t.Fatal(err, out)
	}
	if out, err := w.kubectl("", "delete", "accelrule", "nginx"); err != nil {
		t.Fatal(err, out)
	}
	there := func(images ...string) {
		t.Helper()
		for _, i := range images {
			if _, err := remote.Head(w.ref("library/nginx:" + i)); err != nil {
				t.Errorf("%s: %v", i, err)
			}
		}
	}
	there("1", "2", "1-apparate", "2-apparate")
	remove := func(tag string) {
		t.Helper()
		d, err := remote.Head(w.ref("library/nginx:" + tag))
		if err != nil {
			t.Fatal(err)
		}
		if err := remote.Delete(w.ref("library/nginx@" + d.Digest.String())); err != nil {
			t.Fatal(err)
		}
	}
	remove("1")
	remove("2-apparate")
	there("2", "1-apparate")
	img, err := remote.Image(w.ref("library/nginx:1-apparate"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := img.Manifest(); err != nil {
		t.Error(err)
	}
}
