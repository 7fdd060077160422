package chart

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/docker/cli/cli/config/configfile"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"sigs.k8s.io/yaml"

	"github.com/apparate/apparate/controllers/pullsecret"
)

// account is what arrives of an item of imagePullSecretsCrs.
type account struct{ name, namespaces, serviceAccounts, server, username, password string }

// TestPullSecrets renders every form of imagePullSecretsCrs and reads the result as
// the operator does, and as nodes do.
func TestPullSecrets(t *testing.T) {
	for name, c := range map[string]struct {
		values string
		args   []string
		want   []account
	}{
		"one object": {
			values: `imagePullSecretsCrs: {dockerUsername: robot, dockerPassword: "p:w'\"\\ä", dockerServer: "registry.example.com:5000"}`,
			want:   []account{{"apparate-pull-secret", "[*]", "[*]", "registry.example.com:5000", "robot", `p:w'"\ä`}},
		},
		"all fields": {
			values: `imagePullSecretsCrs: [{name: team, namespaces: "b, a", serviceAccounts: "default,builder", type: docker, dockerUsername: robot, dockerPassword: secret, dockerServer: r.example.com}]`,
			want:   []account{{"team", "[a b]", "[builder default]", "r.example.com", "robot", "secret"}},
		},
		"a list without names": {
			values: `imagePullSecretsCrs: [{dockerUsername: a, dockerPassword: b, dockerServer: r.example.com}, {dockerUsername: c, dockerPassword: d, dockerServer: s.example.com}]`,
			want:   []account{{"apparate-r-example-com", "[*]", "[*]", "r.example.com", "a", "b"}, {"apparate-s-example-com", "[*]", "[*]", "s.example.com", "c", "d"}},
		},
		"two accounts of a server": {
			values: `imagePullSecretsCrs: [{name: one, dockerUsername: a, dockerPassword: b, dockerServer: r.example.com}, {name: two, dockerUsername: c, dockerPassword: d, dockerServer: r.example.com}, {name: three, dockerUsername: e, dockerPassword: f, dockerServer: s.example.com}]`,
			want: []account{
				{"one", "[*]", "[*]", "r.example.com", "a", "b"}, {"three", "[*]", "[*]", "s.example.com", "e", "f"}, {"two", "[*]", "[*]", "r.example.com", "c", "d"},
			},
		},
		"numbers in a file": {
			values: `imagePullSecretsCrs: {dockerUsername: 100012345678, dockerPassword: 9007199254740991, dockerServer: r.example.com}`,
			want:   []account{{"apparate-pull-secret", "[*]", "[*]", "r.example.com", "100012345678", "9007199254740991"}},
		},
		"numbers on the command line": {
			args: []string{"--set", "imagePullSecretsCrs.dockerUsername=100012345678", "--set", "imagePullSecretsCrs.dockerPassword=012345", "--set", "imagePullSecretsCrs.dockerServer=r.example.com"},
			want: []account{{"apparate-pull-secret", "[*]", "[*]", "r.example.com", "100012345678", "012345"}},
		},
		"an item on the command line": {
			args: []string{"--set", "imagePullSecretsCrs[0].dockerUsername=a", "--set-string", "imagePullSecretsCrs[0].dockerPassword=1e3", "--set", "imagePullSecretsCrs[0].dockerServer=r.example.com"},
			want: []account{{"apparate-r-example-com", "[*]", "[*]", "r.example.com", "a", "1e3"}},
		},
		"none, but the operator told to look": {values: `{imagePullSecretsCrs: [], operator: {pullSecrets: always}}`},
	} {
		t.Run(name, func(t *testing.T) {
			all := render(t, c.values, c.args...)
			checkKept(t, all, true)
			got := operatorsList(t, all)
			for _, w := range c.want {
				i := slices.IndexFunc(got, func(a account) bool { return a.name == w.name })
				if i < 0 || got[i] != w {
					t.Errorf("the operator reads %+v, which lacks %+v", got, w)
				}
			}
			if len(got) != len(c.want) {
				t.Errorf("the operator reads %+v", got)
			}
			var want []string
			for _, a := range c.want {
				want = append(want, a.server+" "+a.username+" "+a.password)
			}
			if nodes := nodesList(t, all); !slices.Equal(nodes, want) {
				t.Errorf("nodes read %q, not %q", nodes, want)
			}
		})
	}
}

// operatorsList reads the operator's file with the operator's own reader.
func operatorsList(t *testing.T, all objects) (got []account) {
	t.Helper()
	c, err := pullsecret.Parse(has[*corev1.Secret](t, all, "apparate-operator-pull-secrets").Data["pull-secrets.json"])
	if err != nil || len(c.Mistakes) > 0 {
		t.Fatal(err, c)
	}
	for _, e := range c.Entries {
		f := configfile.New("")
		if err := f.LoadFromReader(bytes.NewReader(e.DockerConfig())); err != nil {
			t.Fatal(err)
		}
		for _, a := range f.AuthConfigs {
			got = append(got, account{e.Name, fmt.Sprint(e.Namespaces), fmt.Sprint(e.ServiceAccounts), a.ServerAddress, a.Username, a.Password})
		}
	}
	return got
}

// nodesList reads the nodes' files with docker's reader, in a file by server.
func nodesList(t *testing.T, all objects) (got []string) {
	t.Helper()
	files := has[*corev1.Secret](t, all, "apparate-node-credentials").Data
	if files["chart.json"] == nil {
		t.Fatal("there is no chart.json")
	}
	// chart.json, then chart-1.json: which of two accounts of a server is tried first
	// does not matter.
	names := slices.Sorted(maps.Keys(files))
	slices.SortStableFunc(names, func(a, b string) int { return len(a) - len(b) })
	for _, name := range names {
		f := configfile.New("")
		if err := f.LoadFromReader(bytes.NewReader(files[name])); err != nil {
			t.Fatal(err)
		}
		for _, server := range slices.Sorted(maps.Keys(f.AuthConfigs)) {
			a := f.AuthConfigs[server]
			got = append(got, server+" "+a.Username+" "+a.Password)
		}
	}
	return got
}

// checkKept looks whether all is there that the operator needs to keep pull secrets,
// and the hook to remove them, or nothing of it.
func checkKept(t *testing.T, all objects, want bool) {
	t.Helper()
	d := has[*appsv1.Deployment](t, all, "apparate-operator")
	flag := strings.Contains(flags(d.Spec.Template.Spec.Containers[0]), "--pull-secrets=/etc/apparate/pull-secrets/pull-secrets.json\n")
	mounted := slices.ContainsFunc(d.Spec.Template.Spec.Volumes, func(v corev1.Volume) bool {
		return v.Secret != nil && v.Secret.SecretName == "apparate-operator-pull-secrets"
	})
	secret := find[*corev1.Secret](all, "apparate-operator-pull-secrets") != nil
	role := find[*rbacv1.ClusterRole](all, "apparate-pull-secrets") != nil
	bound := find[*rbacv1.ClusterRoleBinding](all, "apparate-pull-secrets") != nil
	hook := slices.ContainsFunc(has[*rbacv1.ClusterRole](t, all, "apparate-uninstall").Rules, func(r rbacv1.PolicyRule) bool { return slices.Contains(r.Resources, "secrets") })
	for what, is := range map[string]bool{"flag": flag, "volume": mounted, "Secret": secret, "role": role, "binding": bound, "right of the hook": hook} {
		if is != want {
			t.Errorf("%s: %v, want %v", what, is, want)
		}
	}
}

// TestNeverKept proves that the operator can be told to keep no pull secrets, and
// nodes get the accounts all the same.
func TestNeverKept(t *testing.T) {
	all := render(t, `{operator: {pullSecrets: never}, imagePullSecretsCrs: {dockerUsername: a, dockerPassword: b, dockerServer: r.example.com}}`)
	checkKept(t, all, false)
	if got := nodesList(t, all); !slices.Equal(got, []string{"r.example.com a b"}) {
		t.Errorf("nodes read %q", got)
	}
}

// TestLongNumber proves that a number that cannot be kept whole is refused, and not
// made another one.
func TestLongNumber(t *testing.T) {
	_, bad, err := helm(t, `imagePullSecretsCrs: {dockerUsername: a, dockerPassword: 123456789012345678901234567890, dockerServer: r.example.com}`, "template", release, chart)
	if err == nil || !strings.Contains(bad, "dockerPassword") || !strings.Contains(bad, "quotes") || strings.Contains(bad, "1234567890") {
		t.Errorf("%v:\n%s", err, bad)
	}
}

// TestSecrets proves that passwords are in Secrets and nowhere else.
func TestSecrets(t *testing.T) {
	const canary = "cAnArY"
	text := template(t, `imagePullSecretsCrs: [{name: team, dockerUsername: robot, dockerPassword: `+canary+`, dockerServer: r.example.com}]`)
	for _, doc := range strings.Split(text, "\n---\n") {
		var o struct {
			Kind     string
			Metadata struct{ Name string }
		}
		if err := yaml.Unmarshal([]byte(doc), &o); err != nil {
			t.Fatal(err)
		}
		if o.Kind != "Secret" && strings.Contains(doc, canary) {
			t.Errorf("the password is in %s %s", o.Kind, o.Metadata.Name)
		}
	}
	notes, err := os.ReadFile(chart + "/templates/NOTES.txt")
	if err != nil || bytes.Contains(notes, []byte("dockerPassword")) {
		t.Errorf("the notes tell the password (%v)", err)
	}
}
