package registry

import (
	"context"
	"encoding/pem"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/apparate/apparate/api/v1alpha1"
	oci "github.com/apparate/apparate/converter/registry"
)

// counting counts the reads that reach the server.
type counting struct {
	client.Reader
	reads int
}

func (c *counting) Get(ctx context.Context, key client.ObjectKey, o client.Object, opts ...client.GetOption) error {
	c.reads++
	return c.Reader.Get(ctx, key, o, opts...)
}

func secret(name string, data map[string]string) *corev1.Secret {
	s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name}, Data: map[string][]byte{}}
	for k, v := range data {
		s.Data[k] = []byte(v)
	}
	return s
}

func newStore(objects ...client.Object) (*Store, *counting, client.Client) {
	c := fake.NewClientBuilder().WithObjects(objects...).Build()
	r := &counting{Reader: c}
	return &Store{Reader: r, Keep: time.Hour}, r, c
}

func newRegistry(change func(*v1alpha1.RegistrySpec)) *v1alpha1.Registry {
	r := &v1alpha1.Registry{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "main", UID: "u", Generation: 1}}
	r.Spec.Endpoint = "r.example:5000"
	change(&r.Spec)
	return r
}

const password = "very secret indeed"

// TestCredentials reads docker configs as they come.
func TestCredentials(t *testing.T) {
	config := func(text string) map[string]string { return map[string]string{corev1.DockerConfigJsonKey: text} }
	for what, c := range map[string]struct {
		endpoint, config string
		user             string // that is used for the endpoint; "" for a mistake
		says             string
	}{
		"by host":              {"r.example:5000", `{"auths":{"r.example:5000":{"username":"u","password":"` + password + `"}}}`, "u", ""},
		"by URL":               {"r.example", `{"auths":{"https://r.example/v2/":{"username":"u","password":"` + password + `"}}}`, "u", ""},
		"base64":               {"r.example", `{"auths":{"r.example":{"auth":"dTp2ZXJ5IHNlY3JldCBpbmRlZWQ="}}}`, "u", ""},
		"Docker Hub":           {"docker.io", `{"auths":{"https://index.docker.io/v1/":{"username":"u","password":"` + password + `"}}}`, "u", ""},
		"for another host":     {"r.example", `{"auths":{"o.example":{"username":"u","password":"` + password + `"}}}`, "", "none for r.example"},
		"no JSON":              {"r.example", password, "", "not JSON"},
		"another sort of JSON": {"r.example", `["` + password + `"]`, "", "not a docker config"},
		"helpers are not run":  {"r.example", `{"credsStore":"evil","credHelpers":{"r.example":"evil"},"auths":{}}`, "", "none for r.example"},
	} {
		s, _, _ := newStore(secret("creds", config(c.config)))
		a, err := s.Access(t.Context(), newRegistry(func(s *v1alpha1.RegistrySpec) {
			s.Endpoint, s.CredentialsRef = c.endpoint, &v1alpha1.LocalReference{Name: "creds"}
		}))
		var mistake *SecretError
		if c.user == "" {
			if !errors.As(err, &mistake) || mistake.Field != "spec.credentialsRef" || !strings.Contains(err.Error(), c.says) || strings.Contains(err.Error(), password) {
				t.Errorf("%s: %v", what, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", what, err)
			continue
		}
		for host, want := range map[string]string{c.endpoint: c.user, "evil.example": ""} {
			reg, err := name.NewRegistry(host)
			if err != nil {
				t.Fatal(err)
			}
			auth, err := a.Options.Keychain.Resolve(reg)
			if err != nil {
				t.Fatal(err)
			}
			got, err := auth.Authorization()
			if err != nil || got.Username != want || want != "" && got.Password != password && got.Auth == "" {
				t.Errorf("%s: for %s %q is sent, %v", what, host, got.Username, err)
			}
		}
	}
}

// TestReferences names what is missing, field by field.
func TestReferences(t *testing.T) {
	s, _, _ := newStore(secret("empty", nil), secret("short", map[string]string{"token": "short"}),
		&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "ca"}, Data: map[string]string{"ca.crt": "no PEM"}})
	for _, c := range []struct {
		change      func(*v1alpha1.RegistrySpec)
		field, says string
	}{
		{func(s *v1alpha1.RegistrySpec) { s.CredentialsRef = &v1alpha1.LocalReference{Name: "none"} }, "spec.credentialsRef", `there is no Secret "none" in namespace "ns"`},
		{func(s *v1alpha1.RegistrySpec) { s.CredentialsRef = &v1alpha1.LocalReference{Name: "empty"} }, "spec.credentialsRef", "has no key"},
		{func(s *v1alpha1.RegistrySpec) { s.CARef = &v1alpha1.BundleReference{Name: "none"} }, "spec.caRef", `there is no ConfigMap "none"`},
		{func(s *v1alpha1.RegistrySpec) { s.CARef = &v1alpha1.BundleReference{Kind: "Secret", Name: "none"} }, "spec.caRef", `there is no Secret "none"`},
		{func(s *v1alpha1.RegistrySpec) { s.CARef = &v1alpha1.BundleReference{Name: "ca"} }, "spec.caRef", "no certificate in PEM"},
		{func(s *v1alpha1.RegistrySpec) { s.CARef = &v1alpha1.BundleReference{Name: "ca", Key: "x"} }, "spec.caRef", `has no key "x"`},
	} {
		_, err := s.Access(t.Context(), newRegistry(c.change))
		var mistake *SecretError
		if !errors.As(err, &mistake) || mistake.Field != c.field || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", c.field, err)
		}
	}
	for ref, says := range map[string]string{"none": "there is no Secret", "empty": "has no key", "short": "at least 16"} {
		_, err := s.WebhookSecrets(t.Context(), newRegistry(func(s *v1alpha1.RegistrySpec) {
			s.Webhook = &v1alpha1.RegistryWebhook{SecretRef: v1alpha1.SecretKeyReference{Name: ref}}
		}))
		if err == nil || !strings.Contains(err.Error(), says) || strings.Contains(err.Error(), "short\"}") {
			t.Errorf("%s: %v", ref, err)
		}
	}
}

// TestTokens proves that a token can be changed without a gap.
func TestTokens(t *testing.T) {
	s, _, _ := newStore(secret("hook", map[string]string{"token": "the token of today\n", "token.previous": "the token of yesterday", "other": "an unrelated key"}))
	r := newRegistry(func(s *v1alpha1.RegistrySpec) {
		s.Webhook = &v1alpha1.RegistryWebhook{SecretRef: v1alpha1.SecretKeyReference{Name: "hook"}}
	})
	tokens, err := s.WebhookSecrets(t.Context(), r)
	if err != nil || len(tokens) != 2 || string(tokens[0]) != "the token of today" || string(tokens[1]) != "the token of yesterday" {
		t.Errorf("%q, %v", tokens, err)
	}
	if tokens, err := s.WebhookSecrets(t.Context(), newRegistry(func(*v1alpha1.RegistrySpec) {})); err != nil || len(tokens) > 0 {
		t.Errorf("without a webhook: %q, %v", tokens, err)
	}
}

// TestRevision proves that the revision changes with what matters, tells nothing,
// and that the server is not asked each time.
func TestRevision(t *testing.T) {
	docker := func(p string) map[string]string {
		return map[string]string{corev1.DockerConfigJsonKey: `{"auths":{"r.example:5000":{"username":"u","password":"` + p + `"}}}`}
	}
	creds := secret("creds", docker(password))
	s, reads, c := newStore(creds)
	r := newRegistry(func(s *v1alpha1.RegistrySpec) { s.CredentialsRef = &v1alpha1.LocalReference{Name: "creds"} })
	revision := func() string {
		t.Helper()
		a, err := s.Access(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		return a.Revision
	}
	first := revision()
	if again := revision(); again != first || reads.reads != 1 {
		t.Errorf("%s, %s; %d reads", first, again, reads.reads)
	}
	r.Generation++
	second := revision()
	s.Keep = time.Nanosecond
	creds.Data[corev1.DockerConfigJsonKey] = []byte(docker("another")[corev1.DockerConfigJsonKey])
	if err := c.Update(t.Context(), creds); err != nil {
		t.Fatal(err)
	}
	third := revision()
	if first == second || second == third || strings.Contains(third, "another") {
		t.Errorf("%s %s %s", first, second, third)
	}
}

// TestTrust proves that a certificate of one's own is trusted, and only then.
func TestTrust(t *testing.T) {
	server := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	defer server.Close()
	ca := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}))
	s, _, _ := newStore(&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "ca"}, Data: map[string]string{"ca.crt": ca}})
	host := strings.TrimPrefix(server.URL, "https://")
	r := newRegistry(func(s *v1alpha1.RegistrySpec) {
		s.Endpoint, s.CARef = "https://"+host, &v1alpha1.BundleReference{Name: "ca"}
	})
	a, err := s.Access(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	get := func(rt http.RoundTripper) error {
		resp, err := (&http.Client{Transport: rt}).Get(server.URL)
		if err != nil {
			return err
		}
		return resp.Body.Close()
	}
	if err := get(a.Options.Transport); err != nil {
		t.Error(err)
	}
	if err := get(oci.NewTransport()); err == nil {
		t.Error("it is trusted without its certificate")
	}
	sessions := &Sessions{Store: s}
	one, err := sessions.Get(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	if err := one.Ping(t.Context()); err != nil {
		t.Error(err)
	}
	two, err := sessions.Get(t.Context(), r)
	if err != nil || one != two {
		t.Errorf("another session for the same settings: %v", err)
	}
	r.Generation++
	if three, err := sessions.Get(t.Context(), r); err != nil || three == one {
		t.Errorf("the same session for other settings: %v", err)
	}
	sessions.Forget(client.ObjectKeyFromObject(r))
	if len(sessions.open) != 0 {
		t.Error("a session is left")
	}
}
