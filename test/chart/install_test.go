package chart

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/apparate/apparate/api/v1alpha1"
)

// installed is a release in a namespace of its own. One test has one at a time: CRDs
// and roles are the cluster's.
type installed struct {
	t         *testing.T
	namespace string
	chart     string
	client    client.Client
}

// newRelease is for a release that does not survive the test.
func newRelease(t *testing.T, ns string) *installed {
	t.Helper()
	c, err := client.New(cluster.Config, client.Options{Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	r := &installed{t: t, namespace: ns, chart: chart, client: c}
	t.Cleanup(func() {
		if _, bad, err := helm(t, "", "uninstall", release, "--namespace", ns, "--no-hooks", "--ignore-not-found"); err != nil {
			t.Errorf("uninstalling: %v\n%s", err, bad)
		}
		r.removeCRDs()
	})
	return r
}

// removeCRDs removes the definitions and with them everything of theirs.
func (r *installed) removeCRDs() {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for {
		var list apiextensionsv1.CustomResourceDefinitionList
		if err := r.client.List(ctx, &list); err != nil {
			r.t.Fatal(err)
		}
		if len(list.Items) == 0 {
			return
		}
		for i := range list.Items {
			if err := r.client.Delete(ctx, &list.Items[i]); client.IgnoreNotFound(err) != nil {
				r.t.Fatal(err)
			}
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func (r *installed) install(values string, args ...string) (notes string) {
	r.t.Helper()
	return must(r.t, values, append([]string{"install", release, r.chart, "--namespace", r.namespace, "--create-namespace"}, args...)...)
}

func (r *installed) upgrade(values string, args ...string) (notes string) {
	r.t.Helper()
	return must(r.t, values, append([]string{"upgrade", release, r.chart, "--namespace", r.namespace}, args...)...)
}

func (r *installed) apply(text string) {
	r.t.Helper()
	r.kubectl(text, "apply", "--server-side", "-f", "-")
}

func (r *installed) kubectl(stdin string, args ...string) string {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	out, bad, err := cluster.Kubectl(ctx, stdin, args...)
	if err != nil {
		r.t.Fatalf("kubectl %s: %v\n%s", strings.Join(args, " "), err, bad)
	}
	return out
}

func (r *installed) get(name string, o client.Object) error {
	return r.client.Get(r.t.Context(), types.NamespacedName{Namespace: r.namespace, Name: name}, o)
}

// left are the objects that bear the release's name, but for CRDs.
func (r *installed) left() (names []string) {
	r.t.Helper()
	const kinds = "all,secrets,configmaps,serviceaccounts,roles,rolebindings,clusterroles,clusterrolebindings,poddisruptionbudgets,networkpolicies,validatingadmissionpolicies,validatingadmissionpolicybindings"
	out := r.kubectl("", "get", kinds, "--all-namespaces", "--selector", "app.kubernetes.io/instance="+release, "--output", "name")
	return strings.Fields(out)
}

// TestServerTakesIt has the API server look at every variant, strictly, as if it
// were applied.
func TestServerTakesIt(t *testing.T) {
	r := newRelease(t, namespace)
	r.kubectl("", "create", "namespace", namespace)
	r.kubectl("", "create", "namespace", "elsewhere")
	for name, v := range variants {
		if v.old {
			continue
		}
		t.Run(name, func(t *testing.T) {
			args := append([]string{"--set", "monitoring.serviceMonitor.enabled=false", "--set", "monitoring.podMonitor.enabled=false"}, v.args...)
			text := template(t, v.values, args...)
			_, bad, err := cluster.Kubectl(t.Context(), text, "apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", "-")
			if err != nil {
				t.Error(err, bad)
			}
		})
	}
}

// TestLife installs the chart, changes the list of pull secrets down to none,
// uninstalls it with its hook and installs it again: nothing is left over but CRDs
// and what users made of them.
func TestLife(t *testing.T) {
	r := newRelease(t, "life")
	contains(t, r.install(""), "kubectl label node NODE cloud.tencent.com/apparate=true\n", "imagePullSecretsCrs is empty",
		"http://apparate-notifications.life/v1/notifications/NAMESPACE/REGISTRY", "kubectl -n life rollout status daemonset/apparate-node")
	r.live(false)
	for _, values := range []string{onePullSecret, `imagePullSecretsCrs: []`, ``, onePullSecret, `imagePullSecretsCrs: null`} {
		// An operator that lost the list would not remove what it made from it.
		r.upgrade(values)
		r.live(true)
		var s corev1.Secret
		if err := r.get("apparate-operator-pull-secrets", &s); err != nil {
			t.Fatal(err)
		}
		if text := string(s.Data["pull-secrets.json"]); (values == onePullSecret) != strings.Contains(text, "r.example.com") || (values != onePullSecret && text != "[]") {
			t.Errorf("with %q the list is %s", values, text)
		}
	}

	registry := &v1alpha1.Registry{ObjectMeta: metav1.ObjectMeta{Namespace: r.namespace, Name: "mine"}, Spec: v1alpha1.RegistrySpec{Endpoint: "https://registry.example.com"}}
	if err := r.client.Create(t.Context(), registry); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		out, bad, err := helm(t, "", "uninstall", release, "--namespace", r.namespace, "--timeout", "1m")
		if err != nil {
			err = fmt.Errorf("helm uninstall: %w\n%s%s", err, out, bad)
		}
		done <- err
	}()
	if err := errors.Join(r.runHook(), <-done); err != nil {
		t.Fatal(err)
	}
	if left := r.left(); len(left) > 0 {
		t.Errorf("uninstalled, and left are %q", left)
	}
	if err := r.get("mine", registry); err != nil {
		t.Errorf("uninstalling took what users made: %v", err)
	}

	r.install("")
	r.live(false)
	r.upgrade(`crds: {keep: false}`)
	must(t, "", "uninstall", release, "--namespace", r.namespace, "--no-hooks")
	if left := r.left(); len(left) > 0 {
		t.Errorf("uninstalled without hooks, and left are %q", left)
	}
	// The API server removes the objects of a kind first, in the background.
	var kinds string
	for until := time.Now().Add(time.Minute); time.Now().Before(until); time.Sleep(200 * time.Millisecond) {
		if kinds = r.kubectl("", "get", "crd", "--output", "name"); !strings.Contains(kinds, "apparate") {
			return
		}
	}
	t.Errorf("with crds.keep=false there still are %s", kinds)
}

// live looks at the installed objects.
func (r *installed) live(pullSecrets bool) {
	r.t.Helper()
	var all objects
	for _, o := range []client.Object{&appsv1.Deployment{}, &appsv1.DaemonSet{}} {
		name := "apparate-operator"
		if _, node := o.(*appsv1.DaemonSet); node {
			name = "apparate-node"
		}
		if err := r.get(name, o); err != nil {
			r.t.Fatal(err)
		}
		all = append(all, o)
	}
	flag := strings.Contains(flags(has[*appsv1.Deployment](r.t, all, "apparate-operator").Spec.Template.Spec.Containers[0]), "--pull-secrets=")
	bound := slices.Contains(r.left(), "clusterrolebinding.rbac.authorization.k8s.io/apparate-pull-secrets")
	role := slices.Contains(r.left(), "clusterrole.rbac.authorization.k8s.io/apparate-pull-secrets")
	if flag != pullSecrets || bound != pullSecrets || role != pullSecrets {
		r.t.Errorf("pull secrets: flag %v, binding %v, role %v; want %v", flag, bound, role, pullSecrets)
	}
}

// runHook does the work of the Job controller and of a node: it waits for the hook
// and says that it has succeeded. By then the hook has its rights.
func (r *installed) runHook() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var job batchv1.Job
	for {
		err := r.client.Get(ctx, types.NamespacedName{Namespace: r.namespace, Name: "apparate-uninstall"}, &job)
		if err == nil {
			break
		}
		if !apierrors.IsNotFound(err) {
			return fmt.Errorf("waiting for the hook: %w", err)
		}
		time.Sleep(50 * time.Millisecond)
	}
	if left := r.left(); !slices.Contains(left, "clusterrolebinding.rbac.authorization.k8s.io/apparate-uninstall") || !slices.Contains(left, "daemonset.apps/apparate-node") {
		return fmt.Errorf("when the hook runs there are only %q", left)
	}
	now, yes := metav1.Now(), corev1.ConditionTrue
	job.Status.StartTime, job.Status.CompletionTime, job.Status.Succeeded = &now, &now, 1
	for _, c := range []batchv1.JobConditionType{batchv1.JobSuccessCriteriaMet, batchv1.JobComplete} {
		job.Status.Conditions = append(job.Status.Conditions, batchv1.JobCondition{Type: c, Status: yes, LastProbeTime: now, LastTransitionTime: now})
	}
	return r.client.Status().Update(ctx, &job)
}

// older makes a chart of which one definition says something else.
func older(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "apparate")
	if err := os.CopyFS(dir, os.DirFS(chart)); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "files", "crds", v1alpha1.Group+"_registries.yaml")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	before, after, found := strings.Cut(string(text), "    - jsonPath: .spec.endpoint\n      name: Endpoint\n      type: string\n")
	if !found {
		t.Fatal("the definition of registries has no column Endpoint to take away")
	}
	if err := os.WriteFile(path, []byte(before+after), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

// columns are the printed columns of registries in the cluster.
func (r *installed) columns() (names []string) {
	r.t.Helper()
	var d apiextensionsv1.CustomResourceDefinition
	if err := r.client.Get(r.t.Context(), types.NamespacedName{Name: "registries." + v1alpha1.Group}, &d); err != nil {
		r.t.Fatal(err)
	}
	for _, c := range d.Spec.Versions[0].AdditionalPrinterColumns {
		names = append(names, c.Name)
	}
	return names
}

// TestCRDsAreUpgraded proves that an upgrade of the release upgrades its CRDs.
func TestCRDsAreUpgraded(t *testing.T) {
	r := newRelease(t, "crds")
	r.chart = older(t)
	r.install("")
	if slices.Contains(r.columns(), "Endpoint") {
		t.Fatal("the old chart has the new definition")
	}
	r.chart = chart
	r.upgrade("")
	if !slices.Contains(r.columns(), "Endpoint") {
		t.Error("the upgrade left the old definition")
	}
}

// TestForeignCRDs proves that CRDs that somebody else applied are no obstacle where
// they are the same; where they are not, the message says what to do, and that helps.
func TestForeignCRDs(t *testing.T) {
	r := newRelease(t, "foreign")
	r.kubectl("", "apply", "-f", filepath.Join(root, "config", "crd"))
	for _, notes := range []string{r.install(""), r.upgrade("")} {
		contains(t, notes, "Not of this release, and not updated by it: accelerationrules."+v1alpha1.Group+", imageconversions."+v1alpha1.Group+", registries.")
	}
	must(t, "", "uninstall", release, "--namespace", r.namespace, "--no-hooks")
	if out := r.kubectl("", "get", "crd", "--output", "name"); strings.Count(out, "apparate") != 3 {
		t.Errorf("uninstalling took definitions that were not its own: %s", out)
	}

	r.kubectl("", "apply", "-f", filepath.Join(older(t), "files", "crds"))
	_, bad, err := helm(t, "", "install", release, chart, "--namespace", r.namespace)
	if err == nil || !strings.Contains(bad, "registries."+v1alpha1.Group+" is in the cluster, is not of this release, and differs") {
		t.Fatalf("old definitions of somebody else: %v\n%s", err, bad)
	}
	commands := 0
	for line := range strings.Lines(bad) {
		if command, found := strings.CutPrefix(strings.TrimSpace(line), "kubectl "); found {
			r.kubectl("", strings.Fields(command)...)
			commands++
		}
	}
	if commands == 0 {
		t.Fatalf("the message has no command:\n%s", bad)
	}
	r.install("", "--force-conflicts")
	if !slices.Contains(r.columns(), "Endpoint") {
		t.Error("the definition was taken over and not upgraded")
	}
	var d apiextensionsv1.CustomResourceDefinition
	if err := r.client.Get(t.Context(), types.NamespacedName{Name: "registries." + v1alpha1.Group}, &d); err != nil {
		t.Fatal(err)
	}
	if d.Annotations["meta.helm.sh/release-name"] != release {
		t.Errorf("the definition belongs to nobody: %v", slices.Sorted(maps.Keys(d.Annotations)))
	}
}
