package registry

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/docker/cli/cli/config/configfile"
	"github.com/google/go-containerregistry/pkg/authn"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/apparate/apparate/api/v1alpha1"
	"github.com/apparate/apparate/controllers/match"
	oci "github.com/apparate/apparate/converter/registry"
)

// SecretError is a referenced Secret or ConfigMap that is missing or unfit.
type SecretError struct {
	// Field is the path of the reference, "spec.credentialsRef".
	Field   string
	Message string
}

// Error is "field: message". It never has what is in a Secret.
func (e *SecretError) Error() string { return e.Field + ": " + e.Message }

// Access is all that is needed to speak to a registry instance.
type Access struct {
	// Options has credentials and trust.
	Options oci.Options
	// Revision changes with anything that might make a difference: the spec, the
	// credentials, the certificates. It tells nothing about them.
	Revision string
}

// Store reads the Secrets and ConfigMaps that Registries refer to, one by one:
// the operator may get them and neither list nor watch them. What was read is
// kept for a while, so that a flood of notifications is none of reads.
type Store struct {
	// Reader must not be a cache, which would list and watch every Secret.
	Reader client.Reader
	// Keep is how long an answer is good for; 0 means 15 seconds.
	Keep time.Duration

	mu   sync.Mutex
	seen map[seenKey]seen
}

type seenKey struct {
	kind string
	key  client.ObjectKey
}

type seen struct {
	data map[string][]byte
	err  error
	at   time.Time
}

// maxSeen bounds what is kept; a reference more only costs another read.
const maxSeen = 1000

// data reads a Secret's or ConfigMap's data. The error is nil for a missing one,
// whose data are nil.
func (s *Store) data(ctx context.Context, kind string, key client.ObjectKey) (map[string][]byte, error) {
	keep := s.Keep
	if keep == 0 {
		keep = 15 * time.Second
	}
	k := seenKey{kind, key}
	s.mu.Lock()
	v, ok := s.seen[k]
	s.mu.Unlock()
	if ok && time.Since(v.at) < keep {
		return v.data, v.err
	}
	v = seen{at: time.Now()}
	v.data, v.err = s.read(ctx, kind, key)
	if v.err != nil {
		return nil, v.err // may pass: nothing to keep
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.seen == nil || len(s.seen) >= maxSeen {
		s.seen = map[seenKey]seen{}
	}
	s.seen[k] = v
	return v.data, nil
}

func (s *Store) read(ctx context.Context, kind string, key client.ObjectKey) (map[string][]byte, error) {
	if kind == "Secret" {
		var o corev1.Secret
		err := s.Reader.Get(ctx, key, &o)
		if apierrors.IsNotFound(err) {
			return nil, nil
		}
		if o.Data == nil {
			o.Data = map[string][]byte{}
		}
		return o.Data, err
	}
	var o corev1.ConfigMap
	err := s.Reader.Get(ctx, key, &o)
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	data := map[string][]byte{}
	for k, v := range o.Data {
		data[k] = []byte(v)
	}
	for k, v := range o.BinaryData {
		data[k] = v
	}
	return data, err
}

// Access resolves the references of a Registry. Mistakes in them are of type
// *SecretError; other errors may pass.
func (s *Store) Access(ctx context.Context, r *v1alpha1.Registry) (Access, error) {
	hash := sha256.New()
	hash.Write(fmt.Appendf(nil, "%s %d\n", r.UID, r.Generation))
	var credentials, ca []byte
	var err error
	if ref := r.Spec.CredentialsRef; ref != nil {
		if credentials, err = s.key(ctx, r, "Secret", ref.Name, corev1.DockerConfigJsonKey, "spec.credentialsRef"); err != nil {
			return Access{}, err
		}
		hash.Write(fmt.Appendf(nil, "credentials %x\n", sha256.Sum256(credentials)))
	}
	if ref := r.Spec.CARef; ref != nil {
		kind, key := cmp.Or(ref.Kind, "ConfigMap"), cmp.Or(ref.Key, "ca.crt")
		if ca, err = s.key(ctx, r, kind, ref.Name, key, "spec.caRef"); err != nil {
			return Access{}, err
		}
		hash.Write(fmt.Appendf(nil, "ca %x\n", sha256.Sum256(ca)))
	}
	o, err := NewOptions(r.Host(), credentials, ca)
	if err != nil {
		return Access{}, err
	}
	o.PlainHTTP = r.PlainHTTP()
	return Access{Options: o, Revision: fmt.Sprintf("%x", hash.Sum(nil)[:8])}, nil
}

// NewOptions makes options for a registry host of a docker config and of PEM
// certificates; nil for what there is none of. Without credentials it is used
// anonymously: never with those of the machine. Errors are of type *SecretError.
func NewOptions(host string, credentials, ca []byte) (oci.Options, error) {
	o := oci.Options{Keychain: anonymous{}}
	var err error
	if credentials != nil {
		if o.Keychain, err = newKeychain(credentials, host); err != nil {
			return o, &SecretError{"spec.credentialsRef", fmt.Sprintf("the key %q of the Secret %v", corev1.DockerConfigJsonKey, err)}
		}
	}
	if ca != nil {
		if o.Transport, err = trusting(ca); err != nil {
			return o, &SecretError{"spec.caRef", err.Error()}
		}
	}
	return o, nil
}

// WebhookSecrets returns the tokens that notifications for a Registry may have,
// none when no webhook is configured.
func (s *Store) WebhookSecrets(ctx context.Context, r *v1alpha1.Registry) ([][]byte, error) {
	if r.Spec.Webhook == nil {
		return nil, nil
	}
	const field = "spec.webhook.secretRef"
	ref := r.Spec.Webhook.SecretRef
	ref.Key = cmp.Or(ref.Key, "token")
	token, err := s.key(ctx, r, "Secret", ref.Name, ref.Key, field)
	if err != nil {
		return nil, err
	}
	const least = 16
	if len(token) < least {
		return nil, &SecretError{field, fmt.Sprintf("Secret %q: the token under key %q has %d characters, and must have at least %d", ref.Name, ref.Key, len(token), least)}
	}
	secrets := [][]byte{token}
	data, err := s.data(ctx, "Secret", client.ObjectKey{Namespace: r.Namespace, Name: ref.Name})
	if previous := bytes.TrimSpace(data[ref.Key+".previous"]); len(previous) >= least {
		secrets = append(secrets, previous)
	}
	return secrets, err
}

// key reads one key of a Secret or ConfigMap beside the Registry.
func (s *Store) key(ctx context.Context, r *v1alpha1.Registry, kind, name, key, field string) ([]byte, error) {
	data, err := s.data(ctx, kind, client.ObjectKey{Namespace: r.Namespace, Name: name})
	switch {
	case err != nil:
		return nil, fmt.Errorf("%s: reading %s %q: %w", field, kind, name, err)
	case data == nil:
		return nil, &SecretError{field, fmt.Sprintf("there is no %s %q in namespace %q", kind, name, r.Namespace)}
	case data[key] == nil:
		return nil, &SecretError{field, fmt.Sprintf("%s %q has no key %q", kind, name, key)}
	}
	return bytes.TrimSpace(data[key]), nil
}

// anonymous is a keychain without credentials: never those of the operator's own
// machine.
type anonymous struct{}

// Resolve implements authn.Keychain.
func (anonymous) Resolve(authn.Resource) (authn.Authenticator, error) { return authn.Anonymous, nil }

// keychain has the credentials of one host.
type keychain struct {
	host string
	auth authn.Authenticator
}

// Resolve implements authn.Keychain. Other hosts get nothing.
func (k keychain) Resolve(r authn.Resource) (authn.Authenticator, error) {
	if match.SameHost(r.RegistryStr(), k.host) {
		return k.auth, nil
	}
	return authn.Anonymous, nil
}

// newKeychain reads a docker config and takes the credentials of host out of it.
func newKeychain(config []byte, host string) (authn.Keychain, error) {
	if !json.Valid(config) {
		return nil, errors.New("is not JSON, as docker's config.json") // the parser's error may quote it
	}
	f := configfile.New("")
	if err := f.LoadFromReader(bytes.NewReader(config)); err != nil {
		return nil, errors.New("is not a docker config with \"auths\"")
	}
	var hosts []string
	for name, a := range f.AuthConfigs {
		if !match.SameHost(hostOf(name), host) {
			hosts = append(hosts, hostOf(name))
			continue
		}
		auth := authn.AuthConfig{Username: a.Username, Password: a.Password, Auth: a.Auth, IdentityToken: a.IdentityToken, RegistryToken: a.RegistryToken}
		return keychain{host, authn.FromConfig(auth)}, nil
	}
	return nil, fmt.Errorf("has credentials for %v and none for %s", hosts, host)
}

// hostOf is the host of a name in "auths", which may be a URL
// ("https://index.docker.io/v1/").
func hostOf(name string) string {
	if _, rest, ok := strings.Cut(name, "://"); ok {
		name = rest
	}
	host, _, _ := strings.Cut(name, "/")
	return host
}

// trusting makes a transport that trusts the system's certificates and these.
func trusting(pem []byte) (http.RoundTripper, error) {
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool()
	}
	if !pool.AppendCertsFromPEM(pem) {
		return nil, errors.New("it holds no certificate in PEM")
	}
	t := oci.NewTransport()
	t.TLSClientConfig = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	return t, nil
}
