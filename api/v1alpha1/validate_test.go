package v1alpha1

import (
	"strings"
	"testing"
	"time"
)

func TestValidate(t *testing.T) {
	rule := func(f func(*AccelerationRuleSpec)) []FieldError {
		r := AccelerationRule{Spec: AccelerationRuleSpec{Trigger: RuleTrigger{RegistryRef: LocalReference{"main"}, Namespace: "library"}}}
		f(&r.Spec)
		return r.Validate()
	}
	registry := func(f func(*RegistrySpec)) []FieldError {
		r := Registry{Spec: RegistrySpec{Endpoint: "r.example"}}
		f(&r.Spec)
		return r.Validate()
	}
	conversion := func(f func(*ImageConversionSpec)) []FieldError {
		c := ImageConversion{Spec: ImageConversionSpec{RegistryRef: LocalReference{"main"}, Repository: "library/app", Tag: "v1"}}
		f(&c.Spec)
		return c.Validate()
	}
	for _, c := range []struct {
		got   []FieldError
		field string // "" for no mistake
	}{
		{rule(func(*AccelerationRuleSpec) {}), ""},
		{rule(func(s *AccelerationRuleSpec) { s.Trigger.Repository, s.Trigger.Tag = `app-\d+`, `v(1|2)` }), ""},
		{rule(func(s *AccelerationRuleSpec) { s.Trigger.Namespace = "team/sub_group" }), ""},
		{rule(func(s *AccelerationRuleSpec) { s.Trigger.Namespace = "team//x" }), "spec.trigger.namespace"},
		{rule(func(s *AccelerationRuleSpec) { s.Trigger.Repository = "(" }), "spec.trigger.repository"},
		{rule(func(s *AccelerationRuleSpec) { s.Trigger.Tag = strings.Repeat("a", 513) }), "spec.trigger.tag"},
		{rule(func(s *AccelerationRuleSpec) { s.Trigger.RegistryRef.Name = "" }), "spec.trigger.registryRef.name"},
		{rule(func(s *AccelerationRuleSpec) { s.Conversion.Format = FormatZstdChunked }), ""},
		{rule(func(s *AccelerationRuleSpec) { s.Conversion.Format = "zip" }), "spec.conversion.format"},
		{rule(func(s *AccelerationRuleSpec) { s.Conversion.Platforms = []Platform{"linux/arm64/v8", "linux"} }), "spec.conversion.platforms[1]"},
		{registry(func(s *RegistrySpec) { s.Endpoint = "http://[::1]:5000" }), ""},
		{registry(func(s *RegistrySpec) { s.Endpoint = "ftp://r.example" }), "spec.endpoint"},
		{registry(func(s *RegistrySpec) { s.Endpoint = "r.example/" }), "spec.endpoint"},
		{registry(func(s *RegistrySpec) { s.Scan.Interval = "0s" }), ""},
		{registry(func(s *RegistrySpec) { s.Scan.Interval = "9s" }), "spec.scan.interval"},
		{registry(func(s *RegistrySpec) { s.Scan.Interval = "-1h" }), "spec.scan.interval"},
		{registry(func(s *RegistrySpec) { s.Scan.Repositories = []string{"a", "A"} }), "spec.scan.repositories[1]"},
		{conversion(func(*ImageConversionSpec) {}), ""},
		{conversion(func(s *ImageConversionSpec) { s.Tag = strings.Repeat("a", 120) }), "spec.tag"},
		{conversion(func(s *ImageConversionSpec) { s.Tag = "v1-apparate" }), "spec.tag"},
		{conversion(func(s *ImageConversionSpec) { s.Digest = "sha256:" + strings.Repeat("0", 63) }), "spec.digest"},
		{conversion(func(s *ImageConversionSpec) { s.Repository = "https://r.example/app" }), "spec.repository"},
		{conversion(func(s *ImageConversionSpec) { s.RegistryRef.Name = "" }), "spec.registryRef.name"},
	} {
		switch {
		case c.field == "" && len(c.got) == 0:
		case len(c.got) != 1 || c.got[0].Field != c.field:
			t.Errorf("got %v, want a mistake in %q", c.got, c.field)
		}
	}
}

func TestEndpoint(t *testing.T) {
	for endpoint, want := range map[string]struct {
		host  string
		plain bool
	}{
		"r.example": {"r.example", false}, "https://r.example:5000": {"r.example:5000", false}, "http://10.0.0.5:5000": {"10.0.0.5:5000", true},
	} {
		r := Registry{Spec: RegistrySpec{Endpoint: endpoint}}
		if r.Host() != want.host || r.PlainHTTP() != want.plain {
			t.Errorf("%s: %s, %v", endpoint, r.Host(), r.PlainHTTP())
		}
	}
}

func TestScanInterval(t *testing.T) {
	for text, want := range map[string]time.Duration{"": 10 * time.Minute, "soon": 10 * time.Minute, "0s": 0, "1h30m": 90 * time.Minute} {
		r := Registry{Spec: RegistrySpec{Scan: RegistryScan{Interval: text}}}
		if got := r.ScanInterval(); got != want {
			t.Errorf("%q is %v, want %v", text, got, want)
		}
	}
}
