package pool

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/opensandbox/operator/api/v1alpha1"
)

func quantity(s string) resource.Quantity { return resource.MustParse(s) }

func TestBadPoolsAreRefusedWithTheFieldNamed(t *testing.T) {
	namespace := newNamespace(t)
	cases := []struct {
		name   string
		change func(*v1alpha1.Pool)
		want   []string
	}{
		{"bufferMin above bufferMax", func(p *v1alpha1.Pool) { p.Spec.CapacitySpec = bounds(3, 2, 0, 10) },
			[]string{"spec.capacitySpec", "bufferMin must be at most bufferMax"}},
		{"poolMin above poolMax", func(p *v1alpha1.Pool) { p.Spec.CapacitySpec = bounds(0, 2, 11, 10) },
			[]string{"spec.capacitySpec", "poolMin must be at most poolMax"}},
		{"bufferMin above poolMax", func(p *v1alpha1.Pool) { p.Spec.CapacitySpec = bounds(11, 12, 0, 10) },
			[]string{"spec.capacitySpec", "bufferMin must be at most poolMax"}},
		{"negative bufferMin", func(p *v1alpha1.Pool) { p.Spec.CapacitySpec = bounds(-1, 2, 0, 10) },
			[]string{"spec.capacitySpec.bufferMin", "-1"}},
		{"negative bufferMax", func(p *v1alpha1.Pool) { p.Spec.CapacitySpec = bounds(-3, -2, 0, 10) },
			[]string{"spec.capacitySpec.bufferMax", "-2"}},
		{"negative poolMin", func(p *v1alpha1.Pool) { p.Spec.CapacitySpec = bounds(0, 2, -1, 10) },
			[]string{"spec.capacitySpec.poolMin", "-1"}},
		{"negative poolMax", func(p *v1alpha1.Pool) { p.Spec.CapacitySpec = bounds(0, 2, -6, -5) },
			[]string{"spec.capacitySpec.poolMax", "-5"}},
		{"a name of 64 characters", func(p *v1alpha1.Pool) { p.Name = strings.Repeat("a", 64) },
			[]string{"metadata.name must be at most 63 characters"}},
		{"a scale limit of 0", func(p *v1alpha1.Pool) { p.Spec.ScaleStrategy.MaxUnavailable = limit("0") },
			[]string{"spec.scaleStrategy.maxUnavailable"}},
		{"a scale limit of 101%", func(p *v1alpha1.Pool) { p.Spec.ScaleStrategy.MaxUnavailable = limit("101%") },
			[]string{"spec.scaleStrategy.maxUnavailable"}},
		{"a negative update limit", func(p *v1alpha1.Pool) { p.Spec.UpdateStrategy.MaxUnavailable = limit("-1") },
			[]string{"spec.updateStrategy.maxUnavailable"}},
		{"an update limit of words", func(p *v1alpha1.Pool) { p.Spec.UpdateStrategy.MaxUnavailable = limit("many") },
			[]string{"spec.updateStrategy.maxUnavailable"}},
		{"an unknown way to recycle", func(p *v1alpha1.Pool) { p.Spec.RecycleStrategy.Type = "Wash" },
			[]string{"spec.recycleStrategy.type", "Wash"}},
		{"no template", func(p *v1alpha1.Pool) { p.Spec.Template = nil },
			[]string{"spec.template"}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			p := newPool(namespace, "refused", imageGood, bounds(1, 2, 0, 10))
			c.change(p)
			err := cluster.client.Create(t.Context(), p)
			require.True(t, apierrors.IsInvalid(err), err)
			for _, want := range c.want {
				assert.ErrorContains(t, err, want)
			}
		})
	}
}

func TestAPoolNameOf63CharactersIsTaken(t *testing.T) {
	namespace := newNamespace(t)
	startKubelet(t, namespace)
	startPool(t, namespace)
	p := newPool(namespace, strings.Repeat("a", 63), imageGood, bounds(1, 1, 0, 10))
	create(t, p)
	eventuallyPool(t, p, [4]int32{1, 0, 1, 1}, v1alpha1.ReasonBufferFilled)
}

func limit(s string) *intstr.IntOrString {
	value := intstr.Parse(s)
	return &value
}
