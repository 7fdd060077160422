package kube

import (
	"os/exec"
	"strings"
	"testing"
	"time"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

const job = `
apiVersion: batch/v1
kind: Job
metadata: {name: j}
spec:
  template:
    spec:
      restartPolicy: Never
      containers: [{name: c, image: none.example/none}]
`

func widgets() *apiextensionsv1.CustomResourceDefinition {
	return &apiextensionsv1.CustomResourceDefinition{
		ObjectMeta: metav1.ObjectMeta{Name: "widgets.test.example.com"},
		Spec: apiextensionsv1.CustomResourceDefinitionSpec{
			Group: "test.example.com", Scope: apiextensionsv1.NamespaceScoped,
			Names: apiextensionsv1.CustomResourceDefinitionNames{Plural: "widgets", Singular: "widget", Kind: "Widget", ListKind: "WidgetList"},
			Versions: []apiextensionsv1.CustomResourceDefinitionVersion{{
				Name: "v1", Served: true, Storage: true,
				Schema: &apiextensionsv1.CustomResourceValidation{OpenAPIV3Schema: &apiextensionsv1.JSONSchemaProps{
					Type: "object", Properties: map[string]apiextensionsv1.JSONSchemaProps{"size": {
						Type: "integer", XValidations: apiextensionsv1.ValidationRules{{Rule: "self < 10", Message: "too large"}},
					}},
				}},
			}},
		},
	}
}

// TestCluster proves that what is started is Kubernetes, whole, and that nothing
// of it is left.
func TestCluster(t *testing.T) {
	start := time.Now()
	c := Start(t, Options{Controllers: true, CRDObjects: []*apiextensionsv1.CustomResourceDefinition{widgets()}})
	t.Logf("started in %v", time.Since(start))
	client, err := kubernetes.NewForConfig(c.Config)
	if err != nil {
		t.Fatal(err)
	}
	if v, err := client.Discovery().ServerVersion(); err != nil || v.GitVersion != "v1.37.2" {
		t.Errorf("the version is %v, %v", v, err)
	}
	ns := c.Namespace(t)
	kubectl := func(stdin string, args ...string) (string, error) {
		t.Helper()
		out, bad, err := c.Kubectl(t.Context(), stdin, append([]string{"-n", ns}, args...)...)
		return out + bad, err
	}
	const widget = "apiVersion: test.example.com/v1\nkind: Widget\nmetadata: {name: w}\nsize: "
	if out, err := kubectl(widget+"9", "apply", "-f", "-"); err != nil {
		t.Error(err, out)
	}
	if out, err := kubectl(widget+"11", "apply", "-f", "-"); err == nil || !strings.Contains(out, "size") || !strings.Contains(out, "too large") {
		t.Errorf("CEL is not asked: %v, %s", err, out)
	}
	if out, err := kubectl(job, "apply", "-f", "-"); err != nil {
		t.Fatal(err, out)
	}
	pods := func(want string) {
		t.Helper()
		var out string
		for range 600 {
			if out, _ = kubectl("", "get", "pods", "-l", "job-name=j", "-o", "jsonpath={.items[*].status.phase}"); out == want {
				return
			}
			time.Sleep(50 * time.Millisecond)
		}
		t.Fatalf("pods are %q, want %q", out, want)
	}
	pods("Pending")
	if out, err := kubectl("", "delete", "job", "j"); err != nil {
		t.Fatal(err, out)
	}
	pods("")
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if out, _ := exec.Command("pgrep", "-f", c.dir).Output(); len(out) > 0 {
		t.Errorf("left are the processes %s", out)
	}
	c.env.ControlPlane.Etcd, c.env.ControlPlane.APIServer = nil, nil // closed again at the end
}
