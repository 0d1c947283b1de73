# Work of a shell, children of its own, and short waits. Usage: bash busy.sh SECONDS
fold() {
    if (($1)); then
        fold $(($1 - 1))
        fold $(($1 - 1))
    else
        text=${RANDOM//1/2}
    fi
}

end=$((SECONDS + $1))
while ((SECONDS < end)); do
    fold 6
    copy=$(echo "$text")
    sleep 0.002
done
