package conversion

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/apparate/apparate/api/image"
	"github.com/apparate/apparate/api/v1alpha1"
)

// Name is the name of the conversion for a spec: the same for the same source
// digest and the same way to convert it, so that a push which is seen twice leads
// to one object. It starts with what a person recognises.
func Name(s *v1alpha1.ImageConversionSpec) string {
	platforms := slices.Sorted(slices.Values(s.Platforms))
	hash := sha256.Sum256(fmt.Appendf(nil, "%s\n%s\n%s\n%s\n%s\n%s\n%v\n",
		image.FormatOf(string(s.Format)), s.RegistryRef.Name, s.Repository, s.Tag, s.Digest, s.Format, platforms))
	last := s.Repository[strings.LastIndexByte(s.Repository, '/')+1:]
	return slug(last, 24) + "-" + slug(s.Tag, 24) + "-" + hex.EncodeToString(hash[:5])
}

// slug makes a part of an object's name out of text: at most n characters, lower
// case, and none that would not be allowed (RFC 1123).
func slug(text string, n int) string {
	text = strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9':
			return r
		case r >= 'A' && r <= 'Z':
			return r + 'a' - 'A'
		}
		return '-'
	}, text)
	text = strings.Trim(text[:min(n, len(text))], "-")
	if text == "" {
		return "x"
	}
	return text
}

// Source is the full name of a conversion's source, Target that of its result.
func Source(r *v1alpha1.Registry, s *v1alpha1.ImageConversionSpec) string {
	return r.Host() + "/" + s.Repository + ":" + s.Tag
}

// Target is the full name of the accelerated image.
func Target(r *v1alpha1.Registry, s *v1alpha1.ImageConversionSpec) string {
	return Source(r, s) + image.Suffix
}

// tagKey names the tag that conversions of it share.
func tagKey(c *v1alpha1.ImageConversion) string {
	return strings.Join([]string{c.Namespace, c.Spec.RegistryRef.Name, c.Spec.Repository, c.Spec.Tag}, "\n")
}

// Finished says whether a conversion ended for good.
func Finished(c *v1alpha1.ImageConversion) bool {
	s := succeeded(c)
	return s != nil && s.Status != metav1.ConditionUnknown
}

func succeeded(c *v1alpha1.ImageConversion) *metav1.Condition {
	for i := range c.Status.Conditions {
		if c.Status.Conditions[i].Type == v1alpha1.ConditionSucceeded {
			return &c.Status.Conditions[i]
		}
	}
	return nil
}

// Failed says whether a conversion ended for good without a result, for a reason
// that somebody should look at.
func Failed(c *v1alpha1.ImageConversion) bool {
	s := succeeded(c)
	return s != nil && s.Status == metav1.ConditionFalse &&
		s.Reason != v1alpha1.ReasonSuperseded && s.Reason != v1alpha1.ReasonRuleGone
}

// Succeeded says whether a conversion ended with an accelerated image.
func Succeeded(c *v1alpha1.ImageConversion) bool {
	s := succeeded(c)
	return s != nil && s.Status == metav1.ConditionTrue
}
