package main

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestAReplicaGoesOnForAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		told, tell := context.WithCancel(t.Context())
		ctx := goOn(told, 5*time.Second)
		time.Sleep(time.Hour)
		synctest.Wait()
		require.NoError(t, ctx.Err(), "nobody told it to end")
		tell()
		time.Sleep(5*time.Second - time.Nanosecond)
		synctest.Wait()
		require.NoError(t, ctx.Err(), "the API server may still call it")
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		require.ErrorIs(t, ctx.Err(), context.Canceled)
	})
}
