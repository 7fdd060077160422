package control

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"k8s.io/apimachinery/pkg/api/meta"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/apparate/apparate/api/v1alpha1"
)

// TestPush is the seed's story: switch acceleration on, add a rule, push, and the
// accelerated image appears, an OCI image that equals its source.
func TestPush(t *testing.T) {
	w := newWorld(t, options{})
	w.apply(w.sample("registry.yaml"))
	w.apply(w.sample("accelerationrule.yaml"))
	w.eventually("the rule is ready", func() error { return w.rule("nginx", "True", "Ready") })
	// As docker pushes it; what comes out is OCI.
	w.push("nginx:latest", mutate.ConfigMediaType(mutate.MediaType(image(t, "nginx 1"), types.DockerManifestSchema2), types.DockerConfigJSON))
	m := w.accelerated("nginx:latest")
	if m.MediaType != types.OCIManifestSchema1 || m.Config.MediaType != types.OCIConfigJSON {
		t.Errorf("the media types are %s and %s", m.MediaType, m.Config.MediaType)
	}
	for _, l := range m.Layers {
		if l.MediaType != types.OCILayer {
			t.Errorf("a layer has the type %s", l.MediaType)
		}
	}
	w.eventually("the rule tells at a glance", func() error {
		out, err := w.kubectl("", "get", "accelrule", "nginx", "--no-headers")
		if f := strings.Fields(out); err != nil || len(f) < 5 || strings.Join(f[:5], " ") != "nginx True 1 1 0" {
			return fmt.Errorf("%s, %w", out, orNone(err))
		}
		return nil
	})
	all := w.conversions()
	if len(all) != 1 || !meta.IsStatusConditionTrue(all[0].Status.Conditions, v1alpha1.ConditionSucceeded) {
		out, _ := json.MarshalIndent(all, "", " ")
		t.Errorf("the conversions are %s", out)
	}
	if o := all[0].Annotations[v1alpha1.AnnotationOrigin]; o != "webhook" {
		t.Errorf("it came from %q", o)
	}

	for _, m := range []string{
		`apparate_notifications_total{source="distribution",verdict="accepted"}`, `apparate_conversions_total{result="Converted"} 1`, `apparate_conversion_seconds_count 1`,
		`apparate_conversion_bytes_total{direction="in"}`, `apparate_conversion_queue_depth 0`, `apparate_images_total{reason="Matched"}`,
		`apparate_scan_age_seconds{namespace="` + w.namespace + `",registry="main"}`,
	} {
		if !strings.Contains(w.metric("apparate_"), m) {
			t.Errorf("there is no metric %s:\n%s", m, w.metric("apparate_"))
		}
	}

	// Pushed again: the accelerated image follows.
	w.push("nginx:latest", image(t, "nginx 2"))
	w.accelerated("nginx:latest")
}

// TestBackfill proves that what was there before a rule is found when the rule
// comes, and what it comes to want when it is changed.
func TestBackfill(t *testing.T) {
	w := newWorld(t, options{lost: true})
	w.apply(w.sample("registry.yaml"))
	for _, i := range []string{"library/nginx:1.0", "library/nginx-extra:latest", "library/redis:7", "library/nginx:dev"} {
		w.push(i, image(t, i))
	}
	w.apply(w.sample("accelerationrule.yaml"))
	w.accelerated("library/nginx:1.0")
	w.accelerated("library/nginx-extra:latest")
	if n := len(w.conversions()); n != 2 {
		t.Errorf("there are %d conversions", n)
	}
	w.apply(strings.Replace(w.sample("accelerationrule.yaml"), "nginx.*", "(nginx|redis).*", 1))
	w.accelerated("library/redis:7")
	w.eventually("the rule counts them", func() error {
		var r v1alpha1.AccelerationRule
		if err := w.client.Get(t.Context(), client.ObjectKey{Namespace: w.namespace, Name: "nginx"}, &r); err != nil {
			return err
		}
		if r.Status.Matched != 3 || r.Status.Converted != 3 {
			return fmt.Errorf("%+v", r.Status)
		}
		return nil
	})
	for _, c := range w.conversions() {
		if c.Annotations[v1alpha1.AnnotationOrigin] != "scan" {
			t.Errorf("%s came from %s", c.Name, c.Annotations[v1alpha1.AnnotationOrigin])
		}
	}
	w.eventually("the scan is in the Registry's status", func() error {
		var r v1alpha1.Registry
		if err := w.client.Get(t.Context(), client.ObjectKey{Namespace: w.namespace, Name: "main"}, &r); err != nil {
			return err
		}
		if s := r.Status.Scan; s == nil || s.LastTime == nil || s.Message != "" || s.Tags != 4 || s.Repositories != 3 {
			return fmt.Errorf("%+v", s)
		}
		return nil
	})
}

// TestLost is the same where no notification arrives.
func TestLost(t *testing.T) {
	w := newWorld(t, options{lost: true})
	w.apply(strings.Replace(w.sample("registry.yaml"), "interval: 10m", "interval: 10s", 1))
	w.apply(w.sample("accelerationrule.yaml"))
	w.eventually("the rule is ready", func() error { return w.rule("nginx", "True", "Ready") })
	w.push("nginx:latest", image(t, "nginx 1"))
	w.accelerated("nginx:latest")
	w.push("nginx:latest", image(t, "nginx 2"))
	w.accelerated("nginx:latest")
}

// rule says whether a rule's condition Ready is as wanted.
func (w *world) rule(name, status, reason string) error {
	var r v1alpha1.AccelerationRule
	if err := w.client.Get(w.t.Context(), client.ObjectKey{Namespace: w.namespace, Name: name}, &r); err != nil {
		return err
	}
	c := meta.FindStatusCondition(r.Status.Conditions, v1alpha1.ConditionReady)
	if c == nil || string(c.Status) != status || c.Reason != reason || c.ObservedGeneration != r.Generation {
		return fmt.Errorf("Ready is %+v", c)
	}
	return nil
}
