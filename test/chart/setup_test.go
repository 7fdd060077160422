// Package chart shows the chart with the real helm and the API server of a real
// Kubernetes: what it renders is taken as it is, what it refuses is told with the
// name of the value, and an installation can be upgraded and taken away.
package chart

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/json"
	"k8s.io/apimachinery/pkg/util/yaml"
	clientscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/apparate/apparate/api/v1alpha1"
	"github.com/apparate/apparate/test/kube"
	"github.com/apparate/apparate/test/tools"
)

// What all tests of the package share.
var (
	cluster *kube.Cluster
	program string // helm
	root    string // of the repository
	chart   string // its directory
	home    string // of helm
	scheme  = runtime.NewScheme()
)

func TestMain(m *testing.M) {
	code, err := setup(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "chart:", err)
		code = 1
	}
	os.Exit(code)
}

func setup(m *testing.M) (code int, err error) {
	ctx := context.Background()
	ctrllog.SetLogger(logr.Discard())
	if err := errors.Join(clientscheme.AddToScheme(scheme), apiextensionsv1.AddToScheme(scheme), v1alpha1.AddToScheme(scheme)); err != nil {
		return 1, err
	}
	if root, err = tools.Root(ctx); err != nil {
		return 1, err
	}
	chart = filepath.Join(root, "charts", "apparate")
	paths, err := tools.Ensure(ctx, os.Stderr, tools.Helm)
	if err != nil {
		return 1, err
	}
	program = paths[tools.Helm]
	if home, err = os.MkdirTemp("", "apparate-chart-"); err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(home)) }()
	cluster, err = kube.Run(ctx, os.Stderr, home, kube.Options{})
	if err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, cluster.Close()) }()
	return m.Run(), nil
}

// helm runs helm against the cluster, with values as a file.
func helm(t *testing.T, values string, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	if values != "" {
		// Not below t.TempDir: its names may have commas, which helm takes for two files.
		path := filepath.Join(home, "values.yaml")
		if err := os.WriteFile(path, []byte(values), 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(args, "--values", path)
	}
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), program, args...) // also in cleanups
	cmd.Env = append(os.Environ(), "HOME="+home, "KUBECONFIG="+cluster.Kubeconfig, "HELM_QPS=1000", "HELM_BURST_LIMIT=1000",
		"HELM_CACHE_HOME="+home+"/cache", "HELM_CONFIG_HOME="+home+"/config", "HELM_DATA_HOME="+home+"/data")
	var out, bad bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &bad
	err = cmd.Run()
	return out.String(), bad.String(), err
}

// must runs helm, which has to succeed.
func must(t *testing.T, values string, args ...string) string {
	t.Helper()
	out, bad, err := helm(t, values, args...)
	if err != nil {
		t.Fatalf("helm %s: %v\n%s", strings.Join(args, " "), err, bad)
	}
	return out
}

// Where and as what templates are rendered if nothing else is said.
const (
	release   = "apparate"
	namespace = "apparate-system"
)

// template renders the chart without a cluster.
func template(t *testing.T, values string, args ...string) string {
	t.Helper()
	return must(t, values, append([]string{"template", release, chart, "--namespace", namespace}, args...)...)
}

// objects are those of a rendered chart.
type objects []client.Object

// decode reads what was rendered, strictly: a field that Kubernetes does not know,
// or a key twice, is a mistake.
func decode(t *testing.T, text string) (all objects) {
	t.Helper()
	strict := json.NewSerializerWithOptions(json.DefaultMetaFactory, scheme, scheme, json.SerializerOptions{Yaml: true, Strict: true})
	docs := yaml.NewDocumentDecoder(io.NopCloser(strings.NewReader(text)))
	buffer := make([]byte, 1<<20)
	for {
		n, err := docs.Read(buffer)
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		doc := buffer[:n]
		var head metav1.TypeMeta
		if err := yaml.Unmarshal(doc, &head); err != nil {
			t.Fatalf("%v:\n%s", err, doc)
		}
		if head.Kind == "" {
			continue // comments
		}
		if strings.HasPrefix(head.APIVersion, "monitoring.coreos.com/") {
			u := &unstructured.Unstructured{}
			if err := yaml.Unmarshal(doc, &u.Object); err != nil {
				t.Fatalf("%v:\n%s", err, doc)
			}
			all = append(all, u)
			continue
		}
		o, _, err := strict.Decode(doc, nil, nil)
		if err != nil {
			t.Errorf("%v:\n%s", err, doc)
			continue
		}
		all = append(all, o.(client.Object))
	}
}

// render is decode of template.
func render(t *testing.T, values string, args ...string) objects {
	t.Helper()
	return decode(t, template(t, values, args...))
}

// find returns the object of a type and name, nil where there is none.
func find[T client.Object](all objects, name string) (found T) {
	for _, o := range all {
		if typed, ok := o.(T); ok && o.GetName() == name {
			return typed
		}
	}
	return found
}

// has is find for an object that has to be there.
func has[T client.Object](t *testing.T, all objects, name string) T {
	t.Helper()
	for _, o := range all {
		if typed, ok := o.(T); ok && o.GetName() == name {
			return typed
		}
	}
	var kind T
	t.Fatalf("there is no %T %s", kind, name)
	return kind
}

// flags are the arguments of a container.
func flags(c corev1.Container) string { return strings.Join(append(c.Command, c.Args...), "\n") + "\n" }
