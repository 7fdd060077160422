package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const rulesYAML = `
apiVersion: apparate.cloud.tencent.com/v1alpha1
kind: AccelerationRule
metadata: {name: nginx}
spec:
  trigger: {registryRef: {name: main}, namespace: library, repository: "nginx.*", tag: "latest|v[0-9.]+"}
---
# another kind is left out
apiVersion: v1
kind: ConfigMap
metadata: {name: x}
---
apiVersion: v1
kind: List
items:
- apiVersion: apparate.cloud.tencent.com/v1alpha1
  kind: AccelerationRule
  metadata: {name: paused}
  spec:
    suspend: true
    trigger: {registryRef: {name: main}, namespace: team}
`

const registryYAML = `
apiVersion: apparate.cloud.tencent.com/v1alpha1
kind: Registry
metadata: {name: main}
spec: {endpoint: "https://registry.example.com", accelerationEnabled: SWITCH}
`

// TestVerify answers from files, without a cluster and a registry.
func TestVerify(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		f := filepath.Join(dir, name)
		if err := os.WriteFile(f, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return f
	}
	rules := file("rules.yaml", rulesYAML)
	on, off := file("on.yaml", strings.Replace(registryYAML, "SWITCH", "true", 1)), file("off.yaml", strings.Replace(registryYAML, "SWITCH", "false", 1))
	for _, c := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{"registry.example.com/library/nginx:latest", "-f", rules}, 0, `rule "nginx" matches library/nginx:latest`},
		{[]string{"https://registry.example.com/library/nginx:latest", "-f", rules}, 0, "it becomes registry.example.com/library/nginx:latest-apparate"},
		{[]string{"nginx", "-f", rules}, 0, "docker.io/library/nginx:latest-apparate"},
		{[]string{"registry.example.com/nginx-extra:v1.2", "-f", rules, "-f", on}, 0, "yes"},
		{[]string{"registry.example.com/library/nginx:latest", "-f", rules, "-f", off}, 1, "AccelerationDisabled"},
		{[]string{"other.example.com/library/nginx:latest", "-f", rules, "-f", on}, 1, "no Registry is for other.example.com"},
		{[]string{"registry.example.com/library/redis:7", "-f", rules}, 1, `whose repository "nginx.*" does not match all of "redis"`},
		{[]string{"registry.example.com/library/nginx:dev", "-f", rules}, 1, `whose tag "latest|v[0-9.]+" does not match all of "dev"`},
		{[]string{"registry.example.com/team/app:v1", "-f", rules}, 1, "RuleSuspended"},
		{[]string{"registry.example.com/library/nginx:latest-apparate", "-f", rules}, 1, "IsAcceleratedImage"},
		{[]string{"registry.example.com/library/nginx:sha256-" + strings.Repeat("0", 64) + ".sig", "-f", rules}, 1, "NotAnImage"},
		{[]string{"registry.example.com/library/nginx:latest", "-f", rules, "--output", "json"}, 0, `"matches":true,"reason":"Matched"`},
		{[]string{"registry.example.com/library/nginx@sha256:" + strings.Repeat("0", 64), "-f", rules}, 1, "has a digest and no tag"},
		{[]string{"NO IMAGE", "-f", rules}, 1, "no image address"},
		{[]string{"nginx", "-f", filepath.Join(dir, "none.yaml")}, 1, "no such file"},
		{[]string{"nginx", "-f", on}, 1, "there is no AccelerationRule"},
		{[]string{"nginx", "-f", file("typo.yaml", strings.Replace(rulesYAML, "suspend", "suspended", 1))}, 1, `document 3: items[0]: AccelerationRule: `},
		{[]string{"nginx", "-f", file("bad.yaml", strings.Replace(rulesYAML, "nginx.*", "ngi[nx", 1))}, 1, `AccelerationRule "nginx": spec.trigger.repository: `},
		{[]string{"nginx", "-f", file("broken.yaml", "{")}, 1, "document 1: "},
		{[]string{"nginx", "-f", rules, "-n", "x"}, 2, "leave out -n"},
		{[]string{"nginx", "-f", rules, "--output", "xml"}, 2, "use text or json"},
		{[]string{"nginx", "--kubeconfig", filepath.Join(dir, "none")}, 1, "or give files with -f"},
	} {
		out, code := runCaptured(t, append([]string{"verify"}, c.args...))
		if code != c.code || !strings.Contains(out, c.says) {
			t.Errorf("apparate verify %q exits with %d: %s", c.args, code, out)
		}
	}
}

// runCaptured runs a command line and returns what it printed.
func runCaptured(t *testing.T, args []string) (string, int) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, stderr := os.Stdout, os.Stderr
	os.Stdout, os.Stderr = w, w
	defer func() { os.Stdout, os.Stderr = stdout, stderr }()
	code := run(args)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if _, err := out.ReadFrom(r); err != nil {
		t.Fatal(err)
	}
	return out.String(), code
}
