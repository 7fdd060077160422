package control

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"sigs.k8s.io/yaml"

	"github.com/apparate/apparate/test/kube"
)

// bad is a manifest with a mistake: what follows "spec:" of a kind.
type bad struct {
	name, kind, spec string
	// field is the path that has to be named, says a part of what has to be said.
	field, says string
}

const good = "{trigger: {registryRef: {name: main}, namespace: library}}"

var mistakes = []bad{
	{"a bracket is not closed", "AccelerationRule", `{trigger: {registryRef: {name: main}, namespace: library, repository: "a[b"}}`, "spec.trigger.repository", "missing closing ]"},
	{"a parenthesis is not closed", "AccelerationRule", `{trigger: {registryRef: {name: main}, namespace: library, tag: "v(1|2"}}`, "spec.trigger.tag", "missing closing )"},
	{"nothing is repeated", "AccelerationRule", `{trigger: {registryRef: {name: main}, namespace: library, repository: "*app"}}`, "spec.trigger.repository", "missing argument to repetition operator"},
	{"a look-behind", "AccelerationRule", `{trigger: {registryRef: {name: main}, namespace: library, tag: "(?<!x)y"}}`, "spec.trigger.tag", "invalid"},
	{"no namespace", "AccelerationRule", `{trigger: {registryRef: {name: main}, namespace: ""}}`, "spec.trigger.namespace", ""},
	{"the namespace is missing", "AccelerationRule", `{trigger: {registryRef: {name: main}}}`, "spec.trigger.namespace", "equired"},
	{"all namespaces", "AccelerationRule", `{trigger: {registryRef: {name: main}, namespace: "*"}}`, "spec.trigger.namespace", "literal namespace"},
	{"a namespace with capitals", "AccelerationRule", `{trigger: {registryRef: {name: main}, namespace: "Team-A"}}`, "spec.trigger.namespace", "lower case"},
	{"no registry", "AccelerationRule", `{trigger: {registryRef: {name: ""}, namespace: library}}`, "spec.trigger.registryRef.name", ""},
	{"no trigger", "AccelerationRule", `{description: x}`, "spec.trigger", "equired"},
	{"an unknown format", "AccelerationRule", `{trigger: {registryRef: {name: main}, namespace: library}, conversion: {format: zip}}`, "spec.conversion.format", "estargz"},
	{"no platform", "AccelerationRule", `{trigger: {registryRef: {name: main}, namespace: library}, conversion: {platforms: [amd64]}}`, "spec.conversion.platforms", "platform"},
	{"a platform twice", "AccelerationRule", `{trigger: {registryRef: {name: main}, namespace: library}, conversion: {platforms: [linux/amd64, linux/amd64]}}`, "spec.conversion.platforms", "uplicate"},
	{"a description that is no text", "AccelerationRule", `{description: [1], trigger: {registryRef: {name: main}, namespace: library}}`, "spec.description", "string"},
	{"a field that is not known", "AccelerationRule", `{triger: {}, trigger: {registryRef: {name: main}, namespace: library}}`, "spec.triger", "unknown field"},
	{"an endpoint with a path", "Registry", `{endpoint: "registry.example.com/team"}`, "spec.endpoint", "without a path"},
	{"no endpoint", "Registry", `{endpoint: ""}`, "spec.endpoint", ""},
	{"an interval that is too short", "Registry", `{endpoint: r.example, scan: {interval: 1s}}`, "spec.scan.interval", "at least 10s"},
	{"an interval that is none", "Registry", `{endpoint: r.example, scan: {interval: soon}}`, "spec.scan.interval", ""},
	{"a repository with a tag", "Registry", `{endpoint: r.example, scan: {repositories: ["team/app:v1"]}}`, "spec.scan.repositories", "without host and tag"},
	{"the tag of an accelerated image", "ImageConversion", `{registryRef: {name: main}, repository: library/app, tag: v1-apparate}`, "spec.tag", "accelerated image"},
	{"a tag with a slash", "ImageConversion", `{registryRef: {name: main}, repository: library/app, tag: "a/b"}`, "spec.tag", "tag"},
	{"a digest that is too short", "ImageConversion", `{registryRef: {name: main}, repository: library/app, tag: v1, digest: "sha256:beef"}`, "spec.digest", ""},
}

func (b *bad) yaml() string {
	name := strings.ReplaceAll(b.name, " ", "-")
	return fmt.Sprintf("apiVersion: apparate.cloud.tencent.com/v1alpha1\nkind: %s\nmetadata: {name: %s}\nspec: %s\n", b.kind, name, b.spec)
}

// TestRefused proves that the server refuses mistakes and names the field.
func TestRefused(t *testing.T) {
	w := newWorld(t, options{stopped: true})
	for _, b := range mistakes {
		out, err := w.kubectl(b.yaml(), "apply", "-f", "-")
		if err == nil || !strings.Contains(out, b.field) || !strings.Contains(out, b.says) {
			t.Errorf("%s: %v, %s", b.name, err, out)
		}
	}
	// What cannot be changed.
	w.apply("apiVersion: apparate.cloud.tencent.com/v1alpha1\nkind: Registry\nmetadata: {name: main}\nspec: {endpoint: a.example}")
	w.apply("apiVersion: apparate.cloud.tencent.com/v1alpha1\nkind: ImageConversion\nmetadata: {name: c}\nspec: {registryRef: {name: main}, repository: a/b, tag: v1}")
	for _, c := range []struct{ args, field, says string }{
		{`registry main -p {"spec":{"endpoint":"b.example"}}`, "spec.endpoint", "cannot be changed"},
		{`imageconversion c -p {"spec":{"tag":"v2"}}`, "spec", "cannot be changed"},
	} {
		out, err := w.kubectl("", append([]string{"patch", "--type=merge"}, strings.Fields(c.args)...)...)
		if err == nil || !strings.Contains(out, c.field) || !strings.Contains(out, c.says) {
			t.Errorf("%s: %v, %s", c.args, err, out)
		}
	}
}

// TestDefaults proves what the schema fills in, and the short names.
func TestDefaults(t *testing.T) {
	w := newWorld(t, options{stopped: true})
	w.apply("apiVersion: apparate.cloud.tencent.com/v1alpha1\nkind: Registry\nmetadata: {name: main}\nspec: {endpoint: a.example, caRef: {name: ca}, webhook: {secretRef: {name: s}}}")
	w.apply("apiVersion: apparate.cloud.tencent.com/v1alpha1\nkind: AccelerationRule\nmetadata: {name: r}\nspec: " + good)
	w.apply("apiVersion: apparate.cloud.tencent.com/v1alpha1\nkind: ImageConversion\nmetadata: {name: c}\nspec: {registryRef: {name: main}, repository: a/b, tag: v1}")
	for _, c := range []struct{ object, path, want string }{
		{"accelreg/main", "{.spec.accelerationEnabled} {.spec.scan.interval} {.spec.caRef.kind} {.spec.caRef.key} {.spec.webhook.secretRef.key}", "false 10m ConfigMap ca.crt token"},
		{"accelrule/r", "{.spec.suspend} {.spec.conversion.format}", "false estargz"},
		{"imgconv/c", "{.spec.format}", "estargz"},
	} {
		if out, err := w.kubectl("", "get", c.object, "-o", "jsonpath="+c.path); err != nil || out != c.want {
			t.Errorf("%s has %q, %v; want %q", c.object, out, err, c.want)
		}
	}
	if out, err := w.kubectl("", "get", "apparate", "-o", "name"); err != nil || strings.Count(out, "apparate") != 3 {
		t.Errorf("the category apparate has %s, %v", out, err)
	}
}

// withoutCEL starts a server that does not know CEL rules, as before 1.25: it drops
// the field from the definitions that it stores.
func withoutCEL(t *testing.T) *kube.Cluster {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(root, "config", "crd", "*.yaml"))
	if err != nil || len(files) != 3 {
		t.Fatal(files, err)
	}
	var crds []*apiextensionsv1.CustomResourceDefinition
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		var crd apiextensionsv1.CustomResourceDefinition
		if err := yaml.UnmarshalStrict(b, &crd); err != nil {
			t.Fatal(err)
		}
		for i := range crd.Spec.Versions {
			strip(crd.Spec.Versions[i].Schema.OpenAPIV3Schema)
		}
		crds = append(crds, &crd)
	}
	return kube.Start(t, kube.Options{CRDObjects: crds})
}

func strip(s *apiextensionsv1.JSONSchemaProps) {
	if s == nil {
		return
	}
	s.XValidations = nil
	for k, p := range s.Properties {
		strip(&p)
		s.Properties[k] = p
	}
	if s.Items != nil {
		strip(s.Items.Schema)
	}
}

// TestReported proves that where the server does not know CEL, the operator says
// in status what is wrong, and goes on with what is right.
func TestReported(t *testing.T) {
	w := newWorld(t, options{cluster: withoutCEL(t)})
	accepted := 0
	for _, b := range mistakes {
		out, err := w.kubectl(b.yaml(), "apply", "-f", "-")
		if err != nil {
			if !strings.Contains(out, b.field) {
				t.Errorf("%s: refused without the field: %s", b.name, out)
			}
			continue
		}
		accepted++
		condition := "Ready"
		if b.kind == "ImageConversion" {
			condition = "Succeeded"
		}
		w.eventually(b.name+" is reported", func() error {
			out, err := w.kubectl("", "get", b.kind, strings.ReplaceAll(b.name, " ", "-"), "-o",
				fmt.Sprintf(`jsonpath={.status.conditions[?(@.type=="%[1]s")].status} {.status.conditions[?(@.type=="%[1]s")].reason} {.status.conditions[?(@.type=="Stalled")].status} {.status.conditions[?(@.type=="%[1]s")].message}`, condition))
			if err != nil || !strings.HasPrefix(out, "False InvalidSpec True "+b.field) || !strings.Contains(out, b.says) {
				return fmt.Errorf("%s, %w", out, orNone(err))
			}
			return nil
		})
	}
	if accepted < 10 {
		t.Errorf("only %d mistakes came so far", accepted)
	}
	w.apply(w.sample("registry.yaml"))
	w.apply(w.sample("accelerationrule.yaml"))
	w.eventually("the rule is ready", func() error { return w.rule("nginx", "True", "Ready") })
	w.push("library/nginx:latest", image(t, "no CEL"))
	w.accelerated("library/nginx:latest")
}
