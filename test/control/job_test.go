package control

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/apparate/apparate/api/v1alpha1"
	"github.com/apparate/apparate/test/kube"
)

// TestJobs converts each image in a Job of its own, on a real node: the kubelet
// runs the operator's own program in containerd, with the Registry's Secret mounted
// and no access to Kubernetes. The status is the same as without Jobs.
func TestJobs(t *testing.T) {
	c := kube.Start(t, kube.Options{CRDs: []string{filepath.Join(root, "config", "crd")}, Controllers: true})
	template := filepath.Join(t.TempDir(), "template.yaml")
	// The node is of the host's network; the rest is what a user would set.
	text := "metadata: {labels: {team: images}}\nspec:\n  hostNetwork: true\n  containers: [{name: convert, resources: {requests: {cpu: 100m, memory: 64Mi}, limits: {memory: 1Gi}}}]\n"
	if err := os.WriteFile(template, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, options{cluster: c, stopped: true})
	c.StartNode(t, w.registry.Addr)
	kube.PushProgram(t, w.registry.Addr+"/test/operator:1", commands["apparate-operator"])
	w.args = append(w.args, "--conversion-mode=job", "--job-image="+w.registry.Addr+"/test/operator:1", "--job-template="+template)
	w.apply(w.sample("registry.yaml"))
	w.apply(w.sample("accelerationrule.yaml"))
	w.start()
	w.ready()
	w.eventually("the rule is ready", func() error { return w.rule("nginx", "True", "Ready") })
	w.push("library/nginx:1", image(t, "in a Job"))
	w.accelerated("library/nginx:1")
	w.eventually("the conversion tells what it did", func() error {
		all := w.conversions()
		if len(all) != 1 || all[0].Status.Layers == nil || all[0].Status.Layers.Converted != 2 || all[0].Status.Bytes == nil {
			return fmt.Errorf("%+v", all)
		}
		return nil
	})
	// The operator is killed while a Job runs; the next one finds it.
	w.push("library/nginx:2", image(t, "in another Job"))
	w.eventually("a Job runs", func() error {
		jobs := w.jobs()
		if len(jobs) != 1 {
			return fmt.Errorf("there are %d Jobs", len(jobs))
		}
		spec := jobs[0].Spec.Template.Spec
		k := spec.Containers[0]
		if spec.AutomountServiceAccountToken == nil || *spec.AutomountServiceAccountToken || k.Resources.Limits.Memory().String() != "1Gi" || !spec.HostNetwork {
			t.Errorf("the pod is %+v", spec)
		}
		for _, e := range k.Env {
			if strings.Contains(e.Value, "change-me") {
				t.Error("the password is in the environment")
			}
		}
		return nil
	})
	w.stop(syscall.SIGKILL)
	w.start()
	w.accelerated("library/nginx:2")
	// What fails in a Job fails for the same reason as elsewhere.
	w.apply("apiVersion: apparate.cloud.tencent.com/v1alpha1\nkind: ImageConversion\nmetadata: {name: none}\nspec: {registryRef: {name: main}, repository: library/none, tag: v1}")
	w.eventually("the one without a source has failed", func() error {
		var c v1alpha1.ImageConversion
		if err := w.client.Get(t.Context(), client.ObjectKey{Namespace: w.namespace, Name: "none"}, &c); err != nil {
			return err
		}
		for _, s := range c.Status.Conditions {
			if s.Type == v1alpha1.ConditionSucceeded && s.Status == "False" && s.Reason == "ImageNotFound" && strings.Contains(s.Message, "does not exist") {
				return nil
			}
		}
		return fmt.Errorf("%+v", c.Status)
	})
	w.eventually("no Job is left", func() error {
		if n := len(w.jobs()); n > 0 {
			return fmt.Errorf("there are %d", n)
		}
		var pods corev1.PodList
		if err := w.client.List(t.Context(), &pods, client.InNamespace(w.namespace)); err != nil || len(pods.Items) > 0 {
			return fmt.Errorf("there are %d pods, %w", len(pods.Items), orNone(err))
		}
		return nil
	})
}

func (w *world) jobs() []batchv1.Job {
	w.t.Helper()
	var l batchv1.JobList
	if err := w.client.List(w.t.Context(), &l, client.InNamespace(w.namespace)); err != nil {
		w.t.Fatal(err)
	}
	return l.Items
}
