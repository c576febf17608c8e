package main

import (
	"fmt"
	"strconv"
	"strings"
)

// mostReplicas is how many sandboxes a BatchSandbox may have, mostObjects how many of them are
// created at once.
const (
	mostReplicas = 5000
	mostObjects  = 5000
)

// batches are so many BatchSandboxes with so many sandboxes each.
type batches struct {
	objects  int
	replicas int32
}

func (b batches) total() int32 { return int32(b.objects) * b.replicas }

// of names them, by what each consists of.
func (b batches) of(what string) string {
	if b.objects == 1 {
		return fmt.Sprintf("1 batch of %d%s", b.replicas, what)
	}
	return fmt.Sprintf("%d batches of %d%s", b.objects, b.replicas, what)
}

// parseBatches reads a list like "100,2x5000": one batch of 100 in a row, two of 5000 in another.
func parseBatches(name, list string) (all []batches, err error) {
	if list == "" {
		return nil, nil
	}
	for text := range strings.SplitSeq(list, ",") {
		b := batches{objects: 1}
		count, size, several := strings.Cut(strings.TrimSpace(text), "x")
		if !several {
			size = count
		} else if b.objects, err = parseNumber(name, count, mostObjects); err != nil {
			return nil, err
		}
		replicas, err := parseNumber(name, size, mostReplicas)
		if err != nil {
			return nil, err
		}
		b.replicas = int32(replicas)
		all = append(all, b)
	}
	return all, nil
}

// parseSizes reads a list of numbers of sandboxes.
func parseSizes(name, list string) (sizes []int32, err error) {
	if list == "" {
		return nil, nil
	}
	for text := range strings.SplitSeq(list, ",") {
		n, err := parseNumber(name, strings.TrimSpace(text), mostReplicas)
		if err != nil {
			return nil, err
		}
		sizes = append(sizes, int32(n))
	}
	return sizes, nil
}

func parseNumber(name, text string, most int) (int, error) {
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 || n > most {
		return 0, fmt.Errorf("flag -%s: %q is not a number from 1 to %d", name, text, most)
	}
	return n, nil
}
