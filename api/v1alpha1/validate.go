package v1alpha1

import (
	"fmt"
	"regexp"
	"strings"
	"time"
)

// FieldError is a mistake in a spec: the field by its path, and what it must be.
type FieldError struct{ Field, Message string }

// Error is "field: message".
func (e FieldError) Error() string { return e.Field + ": " + e.Message }

// The grammar of names, as in the schema.
var (
	endpointGrammar   = regexp.MustCompile(`^(https?://)?([A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:]+\])(:[0-9]{1,5})?$`)
	repositoryGrammar = regexp.MustCompile(`^[a-z0-9]+([._-]+[a-z0-9]+)*(/[a-z0-9]+([._-]+[a-z0-9]+)*)*$`)
	tagGrammar        = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$`)
	digestGrammar     = regexp.MustCompile(`^(sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})?$`)
	intervalGrammar   = regexp.MustCompile(`^([0-9]{1,5}(s|m|h)){1,4}$`)
	platformGrammar   = regexp.MustCompile(`^[a-z0-9]+/[a-z0-9_]+(/[a-z0-9.]+)?$`)
)

// mistakes collects the mistakes of a spec.
type mistakes []FieldError

func (m *mistakes) check(ok bool, field, format string, args ...any) {
	if !ok {
		*m = append(*m, FieldError{field, fmt.Sprintf(format, args...)})
	}
}

func (m *mistakes) pattern(field, p string) {
	_, err := regexp.Compile(p)
	m.check(err == nil, field, "%q must be a regular expression in RE2 syntax: %s", p, strings.TrimPrefix(fmt.Sprint(err), "error parsing regexp: "))
	m.check(len(p) <= maxPattern, field, "must have at most %d characters", maxPattern)
}

func (m *mistakes) format(field string, f Format) {
	m.check(f == "" || f == FormatEstargz || f == FormatZstdChunked, field, "%q is not known: use %s or %s", f, FormatEstargz, FormatZstdChunked)
}

func (m *mistakes) platforms(field string, all []Platform) {
	for i, p := range all {
		m.check(platformGrammar.MatchString(string(p)), fmt.Sprintf("%s[%d]", field, i), "%q is no platform such as linux/amd64", p)
	}
}

const (
	maxPattern = 512
	// suffix is that of accelerated tags: image.Suffix, which this package does
	// not import; a test of package match compares them.
	suffix = "-apparate"
)

// Validate returns the mistakes of the spec, none if it is good.
func (r *Registry) Validate() []FieldError {
	var m mistakes
	m.check(endpointGrammar.MatchString(r.Spec.Endpoint), "spec.endpoint",
		"%q must be a host with an optional port, such as registry.example.com or http://10.0.0.5:5000, without a path", r.Spec.Endpoint)
	if s := r.Spec.Scan.Interval; s != "" {
		d, err := time.ParseDuration(s)
		m.check(err == nil && intervalGrammar.MatchString(s) && (d == 0 || d >= 10*time.Second), "spec.scan.interval",
			"%q must be 0s or at least 10s", s)
	}
	for i, name := range r.Spec.Scan.Repositories {
		m.check(repositoryGrammar.MatchString(name), fmt.Sprintf("spec.scan.repositories[%d]", i),
			"%q must be a repository path in lower case without host and tag, such as team-a/app", name)
	}
	return m
}

// ScanInterval is how long to wait between two scans; 0 means that only changes
// of rules cause one. It is 10 minutes where the spec says nothing readable.
func (r *Registry) ScanInterval() time.Duration {
	d, err := time.ParseDuration(r.Spec.Scan.Interval)
	if err != nil || d < 0 {
		return 10 * time.Minute
	}
	return d
}

// Host is the endpoint without its scheme, as it stands in image names.
func (r *Registry) Host() string {
	_, host, ok := strings.Cut(r.Spec.Endpoint, "://")
	if !ok {
		return r.Spec.Endpoint
	}
	return host
}

// PlainHTTP says whether the registry may be spoken to without TLS.
func (r *Registry) PlainHTTP() bool { return strings.HasPrefix(r.Spec.Endpoint, "http://") }

// Validate returns the mistakes of the spec, none if it is good.
func (r *AccelerationRule) Validate() []FieldError {
	var m mistakes
	t := r.Spec.Trigger
	m.check(t.RegistryRef.Name != "", "spec.trigger.registryRef.name", "must name a Registry in the rule's namespace")
	m.check(repositoryGrammar.MatchString(t.Namespace), "spec.trigger.namespace",
		"%q must be one literal namespace of the registry in lower case, such as team-a; for several namespaces make several rules", t.Namespace)
	m.pattern("spec.trigger.repository", t.Repository)
	m.pattern("spec.trigger.tag", t.Tag)
	m.format("spec.conversion.format", r.Spec.Conversion.Format)
	m.platforms("spec.conversion.platforms", r.Spec.Conversion.Platforms)
	return m
}

// Validate returns the mistakes of the spec, none if it is good.
func (c *ImageConversion) Validate() []FieldError {
	var m mistakes
	s := c.Spec
	m.check(s.RegistryRef.Name != "", "spec.registryRef.name", "must name a Registry in the conversion's namespace")
	m.check(ValidRepository(s.Repository), "spec.repository",
		"%q must be a repository path in lower case without host and tag, such as library/nginx", s.Repository)
	m.check(ValidTag(s.Tag), "spec.tag", "%q must be a tag such as v1.2", s.Tag)
	m.check(!strings.HasSuffix(s.Tag, suffix), "spec.tag", "%q is the tag of an accelerated image: name the plain one", s.Tag)
	m.check(len(s.Tag)+len(suffix) <= 128, "spec.tag", "%q leaves no room for %s behind it: registries allow 128 characters", s.Tag, suffix)
	m.check(digestGrammar.MatchString(s.Digest), "spec.digest", "%q must be a digest such as sha256:… with 64 hexadecimal digits", s.Digest)
	m.format("spec.format", s.Format)
	m.platforms("spec.platforms", s.Platforms)
	return m
}

// ValidRepository says whether s is a repository path (OCI distribution spec
// 1.1, "Pulling manifests": <name>).
func ValidRepository(s string) bool { return len(s) <= 255 && repositoryGrammar.MatchString(s) }

// ValidDigest says whether s is a digest that registries use (OCI image spec 1.1,
// "Digests").
func ValidDigest(s string) bool { return s != "" && digestGrammar.MatchString(s) }

// ValidTag says whether s is a tag (ibid.: <reference> as a tag).
func ValidTag(s string) bool { return tagGrammar.MatchString(s) }
