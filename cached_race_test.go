//go:build race

package gormsessions_test

func init() { raceDetector = true }
