package chart

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// TestRefused proves that what is no value of the chart is refused with the name of
// the value, and that what is secret is not in the message.
func TestRefused(t *testing.T) {
	const canary = "cAnArY-of-a-password"
	login := "dockerUsername: robot, dockerPassword: " + canary + ", dockerServer: registry.example.com"
	for values, want := range map[string]string{
		`nodes: {}`:                              "'nodes'",
		`node: {cachesize: 1GiB}`:                "/node': additional properties 'cachesize'",
		`node: {cacheSize: 20 apples}`:           "/node/cacheSize'",
		`node: {cacheSize: 20}`:                  "/node/cacheSize'",
		`node: {backgroundFetchDelay: soon}`:     "/node/backgroundFetchDelay'",
		`node: {podCredentials: "yes"}`:          "/node/podCredentials'",
		`node: {containerdConfig: config.toml}`:  "/node/containerdConfig'",
		`node: {restartCommand: [a, "b,c"]}`:     "/node/restartCommand/1'",
		`node: {hostsDirs: [certs.d]}`:           "/node/hostsDirs/0'",
		`node: {logLevel: loud}`:                 "/node/logLevel'",
		`node: {nodeSelector: {a: true}}`:        "/node/nodeSelector/a'",
		`operator: {replicas: -1}`:               "/operator/replicas'",
		`operator: {replicas: two}`:              "/operator/replicas'",
		`operator: {pullSecrets: sometimes}`:     "/operator/pullSecrets'",
		`operator: {conversion: {mode: thread}}`: "/operator/conversion/mode'",
		`operator: {conversion: {timeout: 3}}`:   "/operator/conversion/timeout'",
		`operator: {notifications: {tls: {}}}`:   "/operator/notifications': additional properties 'tls'",
		`image: {tag: 1.0}`:                      "/image/tag'",
		`image: {digest: abc}`:                   "/image/digest'",
		`image: {pullPolicy: Sometimes}`:         "/image/pullPolicy'",
		`image: {pullSecrets: [{nam: a}]}`:       "/image/pullSecrets/0'",
		`monitoring: {podMonitor: {act: true}}`:  "/monitoring/podMonitor': additional properties 'act'",
		`crds: {install: true}`:                  "/crds': additional properties 'install'",
		`uninstallHook: {timeoutSeconds: 1}`:     "/uninstallHook/timeoutSeconds'",

		`imagePullSecretsCrs: text`:                                                         "/imagePullSecretsCrs'",
		`imagePullSecretsCrs: {}`:                                                           "missing properties 'dockerUsername', 'dockerPassword', 'dockerServer'",
		`imagePullSecretsCrs: {dockerUsername: a, dockerPassword: "b"}`:                     "missing property 'dockerServer'",
		`imagePullSecretsCrs: [{` + login + `, server: x}]`:                                 "/imagePullSecretsCrs/0': additional properties 'server'",
		`imagePullSecretsCrs: {` + login + `, password: x}`:                                 "/imagePullSecretsCrs': additional properties 'password'",
		`imagePullSecretsCrs: [{` + login + `, type: ` + canary + `}]`:                      "/imagePullSecretsCrs/0/type'",
		`imagePullSecretsCrs: [{` + login + `, name: Upper}]`:                               "/imagePullSecretsCrs/0/name'",
		`imagePullSecretsCrs: [{` + login + `, namespaces: [a, b]}]`:                        "/imagePullSecretsCrs/0/namespaces'",
		`imagePullSecretsCrs: [{dockerUsername: a, dockerPassword: "", dockerServer: c}]`:   "/imagePullSecretsCrs/0/dockerPassword'",
		`imagePullSecretsCrs: [{dockerUsername: a, dockerPassword: 1.5, dockerServer: c}]`:  "/imagePullSecretsCrs/0/dockerPassword'",
		`imagePullSecretsCrs: [{dockerUsername: a, dockerPassword: true, dockerServer: c}]`: "/imagePullSecretsCrs/0/dockerPassword'",
	} {
		_, bad, err := helm(t, values, "template", release, chart)
		if err == nil || !strings.Contains(bad, want) {
			t.Errorf("%s: %v, which does not say %q:\n%s", values, err, want, bad)
		}
		if strings.Contains(bad, canary) {
			t.Errorf("%s: the password is told:\n%s", values, bad)
		}
	}
}

// TestSchema proves that every value is described, that objects refuse what they do
// not list, and that values.yaml has every default.
func TestSchema(t *testing.T) {
	read := func(name string, into any) {
		t.Helper()
		text, err := os.ReadFile(filepath.Join(chart, name))
		if err != nil {
			t.Fatal(err)
		}
		if err := yaml.Unmarshal(text, into); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	var schema, values map[string]any
	read("values.schema.json", &schema)
	read("values.yaml", &values)
	definitions := schema["definitions"].(map[string]any)
	equal := func(a, b any) bool {
		x, err1 := json.Marshal(a)
		y, err2 := json.Marshal(b)
		return err1 == nil && err2 == nil && string(x) == string(y)
	}
	var visit func(path string, s map[string]any, value any, given bool)
	visit = func(path string, s map[string]any, value any, given bool) {
		if path != "" && s["description"] == nil {
			t.Errorf("%s is not described", path)
		}
		if want, has := s["default"]; has && (!given || !equal(want, value)) {
			t.Errorf("%s is %v in values.yaml and %v in the schema", path, value, want)
		}
		full := s
		if ref, ok := s["$ref"].(string); ok {
			full = definitions[strings.TrimPrefix(ref, "#/definitions/")].(map[string]any)
		}
		properties, _ := full["properties"].(map[string]any)
		if properties != nil && full["additionalProperties"] != false {
			t.Errorf("%s takes keys that it does not list", path)
		}
		below, _ := value.(map[string]any)
		for name, p := range properties {
			v, there := below[name]
			visit(path+"."+name, p.(map[string]any), v, there)
			delete(below, name)
		}
		if _, free := s["default"]; !free && properties != nil && len(below) > 0 {
			t.Errorf("%s has %v in values.yaml alone", path, below)
		}
		if items, ok := full["items"].(map[string]any); ok && items["properties"] != nil {
			if items["description"] == nil {
				items["description"] = s["description"]
			}
			visit(path+"[]", items, nil, false)
		}
	}
	visit("", schema, values, true)
}
