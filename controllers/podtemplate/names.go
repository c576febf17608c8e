package podtemplate

import (
	"strconv"
	"strings"

	utilrand "k8s.io/apimachinery/pkg/util/rand"
	"k8s.io/apimachinery/pkg/util/validation"
)

// randomLength of a suffix: 27^6, or 387 million names. A name that is taken is
// noticed and another one chosen.
const randomLength = 6

// PoolPodName returns a new name for a pod of the pool.
func PoolPodName(pool string) string {
	return join(pool, utilrand.String(randomLength))
}

// ShardPodName returns the name for the pod of a shard: the same each time for the
// first attempt, so that a repeated create finds its pod; a new one afterwards,
// when the first name is still taken by the pod that is being replaced.
func ShardPodName(batchSandbox string, shard int32, first bool) string {
	suffix := strconv.Itoa(int(shard))
	if !first {
		suffix += "-" + utilrand.String(randomLength)
	}
	return join(batchSandbox, suffix)
}

// join cuts the base so that the whole is a valid name of a pod.
func join(base, suffix string) string {
	if room := validation.DNS1123SubdomainMaxLength - len(suffix) - 1; len(base) > room {
		base = strings.TrimRight(base[:room], "-.")
	}
	return base + "-" + suffix
}
